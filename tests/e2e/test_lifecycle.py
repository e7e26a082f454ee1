"""A job from apply to its end, with all that may befall it, on pods that really run and really die."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from everstep.catalog import JobCatalog
from everstep.failure import reached
from tests.support import pod_processes
from tests.support.tenant import Tenant
from tests.support.waiting import wait_for
from tests.trainers.lite import SHARD, chain

SLOW = ("--total-steps=60", "--seconds-per-step=0.1", "--save-every=5")
"""Six seconds of training: time enough to strike."""


def result(register: JobCatalog) -> str:
    """The state in the last checkpoint, as hex: right only if no step was skipped or repeated."""
    last = register.require().latest()
    assert last is not None
    return register.store.get(f"{last.location}/{SHARD}")[:32].hex()


def test_a_job_succeeds_and_its_pods_stay_for_their_logs(team: Tenant) -> None:
    team.run("plain")
    status = team.until_phase("plain", "Succeeded")
    assert status["progress"]["summary"] == "50/50 (100%)"
    assert status["lastCheckpoint"]["step"] == 50
    assert status["gang"]["summary"] == "2 of 2 succeeded"
    assert result(team.register("plain")) == chain(50).hex()
    assert all(condition["message"] for condition in status["conditions"])
    assert team.row("plain")[:7] == ["plain", "Succeeded", "50", "50/50", "(100%)", "50", "0"]
    assert team.told("plain", "Succeeded") == team.condition("plain", "Complete")["message"]
    assert [event["reason"] for event in team.events("plain")] == [
        "GangCreated",
        "Running",
        "CheckpointCommitted",
        "Succeeded",
    ]
    assert sorted(team.pods("plain")) == ["plain-1-0", "plain-1-1"]
    assert "step 50 of 50" in team.kubectl("logs", "plain-1-0")


def sigkill(team: Tenant, job: str, pod: str) -> None:
    """The container's first process, from outside, as the kernel would."""
    address = team.pods(job)[pod]["status"]["podIP"]
    pod_processes.first(address, team.get(job)["metadata"]["uid"]).send(signal.SIGKILL)


def noted(team: Tenant, job: str, pod: str) -> int:
    """The last step that has ended there, as the kubelet would find it now."""
    process = pod_processes.first(team.pods(job)[pod]["status"]["podIP"], team.get(job)["metadata"]["uid"])
    step = reached(Path(f"/proc/{process.pid}/root/dev/termination-log").read_bytes())
    assert step is not None
    return step


def force_delete(team: Tenant, job: str, pod: str) -> None:
    team.kubectl("delete", "pod", pod, "--force", "--grace-period=0", "--wait=false")


def evict(team: Tenant, job: str, pod: str) -> None:
    """As `kubectl drain` does."""
    metadata = {"name": pod, "namespace": team.namespace}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    team.core.create_namespaced_pod_eviction(pod, team.namespace, body)


@pytest.mark.parametrize(
    ("strike", "index", "reason", "message"),
    [
        (sigkill, 0, "SIGKILL", "was killed by SIGKILL"),
        (force_delete, 1, "PodDeleted", "was deleted"),
        (evict, 0, "EvictionByEvictionAPI", "Eviction API: evicting"),
    ],
    ids=["sigkill", "force-delete", "evict"],
)
def test_a_lost_pod_costs_the_steps_since_the_last_commit_and_no_more(
    team: Tenant, strike: Callable[[Tenant, str, str], None], index: int, reason: str, message: str
) -> None:
    name = f"struck-{reason[:4].lower()}"
    team.run(name, *SLOW)
    team.until_step(name, 15)
    trained = noted(team, name, f"{name}-1-0")
    strike(team, name, f"{name}-1-{index}")
    status = team.until_phase(name, "Succeeded")
    assert (status["attempt"], status["restarts"]["total"]) == (2, 1)
    ended = status["history"][0]
    assert ended["reason"] == reason
    assert message in ended["message"]
    assert status["restarts"]["lastReason"] == ended["message"]
    assert status["resumedFrom"]["step"] >= 15
    assert ended["toStep"] >= trained
    assert status["recovery"]["lostSteps"] == ended["toStep"] - status["resumedFrom"]["step"]
    assert result(team.register(name)) == chain(60).hex()
    assert f"attempt 1: {ended['message']}" in team.told(name, "GangFailed")
    assert sorted(team.pods(name)) == [f"{name}-2-0", f"{name}-2-1"]


def test_out_of_memory_is_called_so(team: Tenant) -> None:
    manifest = team.job("hungry", nodes=1, failurePolicy={"maxRestarts": 0})
    manifest["spec"]["template"]["spec"]["containers"][0] |= {
        "command": ["python3", "-c", "x = [bytearray(1 << 20) for _ in range(1000)]"],
        "resources": {"limits": {"memory": "48Mi"}},
    }
    team.apply(manifest)
    status = team.until_phase("hungry", "Failed")
    assert status["history"][0]["reason"] == "OOMKilled"
    assert "ran out of memory" in team.condition("hungry", "Failed")["message"]


def test_a_script_that_commits_nothing_is_given_up(team: Tenant) -> None:
    team.run("barren", "--crash-step=3", "--crash-attempts=99")
    status = team.until_phase("barren", "Failed")
    assert (status["attempt"], status["restarts"]["total"]) == (3, 2)
    condition = team.condition("barren", "Failed")
    assert condition["reason"] == "NoProgress"
    assert "3 attempts in a row committed nothing; the last failure: " in condition["message"]
    assert "RuntimeError: told to crash at step 3" in condition["message"]
    pods = team.pods("barren")
    team.patch("barren", suspend=True)
    team.patch("barren", suspend=False)
    wait_for("the operator has seen it", lambda: team.status("barren")["observedGeneration"] == 3)
    assert team.status("barren")["phase"] == "Failed"
    assert team.pods("barren").keys() == pods.keys()


def test_restarts_that_make_progress_have_a_limit_too(team: Tenant) -> None:
    policy = {"maxRestarts": 1, "backoff": {"initialSeconds": 1}}
    team.run("unlucky", "--save-every=5", "--crash-step=7", "--crash-attempts=1", failurePolicy=policy)
    team.run(
        "doomed", "--save-every=1", "--crash-step=7", "--crash-attempts=99", failurePolicy={**policy, "maxRestarts": 0}
    )
    team.until_phase("unlucky", "Succeeded")
    team.until_phase("doomed", "Failed")
    condition = team.condition("doomed", "Failed")
    assert condition["reason"] == "RestartLimit"
    assert condition["message"].startswith("maxRestarts 0 is used up; the last failure: ")
    assert team.status("doomed")["lastCheckpoint"]["step"] == 6


def test_the_operator_may_go_while_a_job_runs_and_while_it_restarts(team: Tenant) -> None:
    steps = 250
    team.run("orphan", f"--total-steps={steps}", "--seconds-per-step=0.1", "--save-every=5")
    team.until_step("orphan", 5)
    team.operator.delete_pod()
    team.until_step("orphan", 15)
    uids = {name: pod["metadata"]["uid"] for name, pod in team.pods("orphan").items()}
    assert sorted(uids) == ["orphan-1-0", "orphan-1-1"]
    force_delete(team, "orphan", "orphan-1-0")
    team.until("orphan", lambda status: status["phase"] == "Restarting", "restarting")
    team.operator.delete_pod()
    status = team.until_phase("orphan", "Succeeded", seconds=90)
    assert (status["attempt"], status["restarts"]["total"]) == (2, 1)
    assert result(team.register("orphan")) == chain(steps).hex()


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
def test_what_stays_when_a_job_is_deleted_while_it_runs(team: Tenant, policy: str) -> None:
    name = f"gone-{policy.lower()}"
    team.run(name, *SLOW, deletionPolicy=policy)
    team.until_step(name, 10)
    team.delete(name)
    wait_for("its pods are gone", lambda: not team.pods(name))
    if policy == "Retain":
        assert team.catalog(name).latest()
    else:
        assert team.keys(name) == []
    services = team.kubectl("get", "services", "-o", "name", f"--selector=everstep.dev/job={name}")
    wait_for("the service is gone", lambda: name not in services)


def test_a_job_applied_again_goes_on_where_its_namesake_was(team: Tenant) -> None:
    team.run("again", *SLOW)
    team.until_step("again", 15)
    team.delete("again")
    before = team.catalog("again").latest()
    assert before is not None
    team.run("again", *SLOW)
    status = team.until("again", lambda status: status.get("resumedFrom"), "resuming")
    assert status["resumedFrom"]["step"] >= before.step
    status = team.until_phase("again", "Succeeded")
    assert result(team.register("again")) == chain(60).hex()


def test_suspend_saves_first_and_resume_loses_nothing(team: Tenant) -> None:
    team.run("paused", "--total-steps=60", "--seconds-per-step=0.1", "--save-every=50")
    team.until("paused", lambda status: (status.get("progress") or {}).get("step", 0) >= 3, "at step 3")
    team.patch("paused", suspend=True)
    status = team.until_phase("paused", "Suspended")
    wait_for("its pods are gone", lambda: not team.pods("paused"))
    saved = status["lastCheckpoint"]["step"]
    assert 3 <= saved < 50
    assert team.condition("paused", "Suspended")["message"] == "set spec.suspend to false to resume"
    team.patch("paused", suspend=False)
    status = team.until_phase("paused", "Succeeded")
    assert status["resumedFrom"]["step"] == saved
    assert status["restarts"]["total"] == 0
    assert result(team.register("paused")) == chain(60).hex()


def test_what_is_kept_is_what_was_asked_for(team: Tenant) -> None:
    """The score is 1/step, so the best by max is the first."""
    keep = {"keepLast": 2, "keepEvery": 20, "keepBest": {"count": 1, "metric": "loss", "mode": "max"}}
    team.run("tidy", "--total-steps=50", "--save-every=5", checkpoint=keep)
    team.until_phase("tidy", "Succeeded")
    wanted = [5, 20, 40, 45, 50]
    wait_for("the rest is removed", lambda: team.steps("tidy") == wanted and not team.catalog("tidy").removing)
    locations = {entry.location for entry in team.catalog("tidy").live()}
    kept = {"/".join(key.split("/")[:2]) for key in team.keys("tidy") if key.startswith("checkpoints/")}
    assert kept == locations
    files = {".metadata", "COMMITTED", SHARD, "manifest.json"}
    keys = {key for key in team.keys("tidy") if not key.startswith("checkpoints/")}
    assert {key.rsplit("/", 1)[1] for key in team.keys("tidy") if key.startswith("checkpoints/")} == files
    assert keys == {"catalog.json", "progress/000001.json"}


def test_two_jobs_side_by_side(team: Tenant) -> None:
    team.run("left", *SLOW)
    team.run("right", *SLOW)
    team.until_step("left", 10)
    force_delete(team, "left", "left-1-1")
    right, left = team.until_phase("right", "Succeeded"), team.until_phase("left", "Succeeded")
    assert (left["restarts"]["total"], right["restarts"]["total"]) == (1, 0)
    for name in ("left", "right"):
        assert result(team.register(name)) == chain(60).hex()


def test_a_finished_job_goes_when_its_time_is_over(team: Tenant) -> None:
    team.run("brief", nodes=1, ttlSecondsAfterFinished=1)
    wait_for("the job is gone", lambda: "brief" not in team.kubectl("get", "tj", "-o", "name"), 60)
    assert team.catalog("brief").latest(), "its checkpoints stay"
