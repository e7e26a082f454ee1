"""What single fields of the spec do, on a real API server and real object storage: one job a test, one operator.

docs/fields.md names the test of each field; those that are not here stand beside what acts on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from tests.support.rig import Rig
from tests.support.waiting import wait_for
from tests.trainers.lite import Options, chain

QUICK = Options(total_steps=30, seconds_per_step=0.02, save_every=10, heartbeat_seconds=0.2)
LONG = replace(QUICK, total_steps=10_000, seconds_per_step=0.05)
NO_WAIT = {"initialSeconds": 0, "maxSeconds": 0}


WEIGHTS = {"interval": {"steps": 3, "seconds": 30}, "keepLast": 4}
LOCAL = {"interval": {"steps": 1, "seconds": 10}, "medium": "Memory", "sizeLimit": "64Mi"}


@pytest.fixture(scope="module")
def built(shared_rig: Rig) -> Any:
    """The first pod of a job that sets what a pod is made from."""
    storage = {
        "uri": f"s3://{shared_rig.bucket}/elsewhere",
        "endpoint": shared_rig.endpoint,
        "region": "eu-test-1",
        "secretName": "keys",
    }
    checkpoint = {
        "storage": storage,
        "interval": {"steps": 7, "seconds": 70},
        "async": False,
        "keepBest": {"metric": "eval/loss"},
        "weights": WEIGHTS,
        "local": LOCAL,
    }
    container = {"name": "trainer", "image": "example.test/lite:2", "args": ["torchrun", "x.py"]}
    shared_rig.options["built"] = LONG
    template = {"metadata": {"labels": {"team": "a"}}, "spec": {"containers": [container]}}
    shared_rig.apply(
        "built",
        nodes=3,
        procPerNode="gpu",
        template=template,
        checkpoint=checkpoint,
        failurePolicy={"saveTimeoutSeconds": 1200},
    )
    wait_for("three pods", lambda: len([p for p in shared_rig.pods() if p.metadata.name.startswith("built-")]) == 3)
    found = shared_rig.core.read_namespaced_pod("built-1-0", shared_rig.namespace)
    shared_rig.delete("built")
    return found


def environment(pod: Any) -> dict[str, str]:
    return {variable.name: variable.value for variable in pod.spec.containers[0].env}


def policy(pod: Any) -> Any:
    return json.loads(environment(pod)["EVERSTEP_POLICY"])


def local_tier(pod: Any) -> tuple[Any, ...]:
    """The policy, and the volume at the path that the trainer is told."""
    told = environment(pod)
    (mount,) = (each for each in pod.spec.containers[0].volume_mounts if each.mount_path == told["EVERSTEP_LOCAL_PATH"])
    (volume,) = (each.empty_dir for each in pod.spec.volumes if each.name == mount.name)
    return policy(pod)["local"], volume.medium, volume.size_limit, told["EVERSTEP_LOCAL_BYTES"]


MADE: list[tuple[str, Callable[[Any], Any], Any]] = [
    ("nodes", lambda pod: environment(pod)["PET_NNODES"], "3"),
    ("procPerNode", lambda pod: environment(pod)["PET_NPROC_PER_NODE"], "gpu"),
    (
        "template",
        lambda pod: (pod.spec.containers[0].image, pod.spec.containers[0].args, pod.metadata.labels["team"]),
        ("example.test/lite:2", ["torchrun", "x.py"], "a"),
    ),
    ("checkpoint.storage.uri", lambda pod: environment(pod)["EVERSTEP_ROOT"].split("/")[3], "elsewhere"),
    ("checkpoint.storage.endpoint", lambda pod: environment(pod)["AWS_ENDPOINT_URL"][:7], "http://"),
    ("checkpoint.storage.region", lambda pod: environment(pod)["AWS_REGION"], "eu-test-1"),
    ("checkpoint.storage.secretName", lambda pod: pod.spec.containers[0].env_from[0].secret_ref.name, "keys"),
    ("checkpoint.interval.steps", lambda pod: policy(pod)["interval"]["steps"], 7),
    ("checkpoint.interval.seconds", lambda pod: policy(pod)["interval"]["seconds"], 70),
    ("checkpoint.async", lambda pod: policy(pod)["async"], False),
    ("checkpoint.weights", lambda pod: policy(pod)["weights"], WEIGHTS),
    ("checkpoint.local", lambda pod: local_tier(pod), (LOCAL, "Memory", "64Mi", str(64 << 20))),
    ("failurePolicy.saveTimeoutSeconds", lambda pod: policy(pod)["saveTimeoutSeconds"], 1200),
    ("checkpoint.keepBest.metric", lambda pod: policy(pod)["keepBest"]["metric"], "eval/loss"),
]


@pytest.mark.parametrize(("field", "what", "expected"), MADE, ids=[field for field, *_ in MADE])
def test_pods_are_made_from(built: Any, field: str, what: Callable[[Any], Any], expected: Any) -> None:
    assert what(built) == expected, field


@pytest.mark.parametrize("mode", ["max", "min"])
def test_keep_best_keeps_the_best_scores(shared_rig: Rig, mode: str) -> None:
    """The score of the small trainer is one over the step: the first checkpoint has the highest."""
    name = f"best-{mode}"
    shared_rig.options[name] = replace(QUICK, total_steps=80)
    shared_rig.apply(name, checkpoint={"keepLast": 2, "keepBest": {"count": 1, "metric": "score", "mode": mode}})
    shared_rig.until_phase("Succeeded", name=name)
    expected = [10, 70, 80] if mode == "max" else [70, 80]
    wait_for("only those are left", lambda: [e.step for e in shared_rig.catalog(name).live()] == expected)
    status = shared_rig.status(name)
    assert status["checkpoints"]["best"]["step"] == (10 if mode == "max" else 80)


def test_keep_best_keeps_so_many(shared_rig: Rig) -> None:
    shared_rig.options["count"] = replace(QUICK, total_steps=80)
    shared_rig.apply("count", checkpoint={"keepLast": 2, "keepBest": {"count": 3, "metric": "score", "mode": "max"}})
    shared_rig.until_phase("Succeeded", name="count")
    wait_for("five", lambda: [e.step for e in shared_rig.catalog("count").live()] == [10, 20, 30, 70, 80])


def test_resume_disable_begins_afresh_though_there_are_checkpoints(shared_rig: Rig) -> None:
    shared_rig.options["afresh"] = QUICK
    shared_rig.apply("afresh")
    shared_rig.until_phase("Succeeded", name="afresh")
    shared_rig.delete("afresh")
    wait_for("it is gone", lambda: not shared_rig.exists("afresh"))
    wait_for("its pods are gone", lambda: not any(p.metadata.name.startswith("afresh-") for p in shared_rig.pods()))
    shared_rig.apply("afresh", resume={"mode": "disable"})
    shared_rig.until_phase("Succeeded", name="afresh")
    second = shared_rig.kubelet.container("afresh-2-0")
    assert second.environment["EVERSTEP_RESUME_PATH"] == ""
    assert second.run.state == chain(30)
    assert [entry.step for entry in shared_rig.catalog("afresh").live()] == [10, 20, 30]


RULES: list[tuple[str, dict[str, Any], bool]] = [
    ("in", {"action": "FailJob", "onExitCodes": {"values": [42]}}, True),
    ("not-in", {"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [1, 2]}}, True),
    ("other-code", {"action": "FailJob", "onExitCodes": {"values": [43]}}, False),
    ("reason", {"action": "FailJob", "onReasons": ["RuntimeError"]}, True),
    ("message", {"action": "FailJob", "onMessages": ["told to crash*step 15"]}, True),
    ("restart", {"action": "Restart", "onExitCodes": {"values": [42]}}, False),
    ("uncounted", {"action": "RestartUncounted", "onExitCodes": {"values": [42]}}, False),
]


@pytest.mark.parametrize(("name", "rule", "ends"), RULES, ids=[name for name, *_ in RULES])
def test_a_rule_decides_about_a_failure_that_it_matches(
    shared_rig: Rig, name: str, rule: dict[str, Any], ends: bool
) -> None:
    job = f"rule-{name}"
    shared_rig.options[job] = replace(QUICK, crash_step=15, crash_code=42)
    shared_rig.apply(job, failurePolicy={"rules": [{"name": "config", **rule}], "backoff": NO_WAIT})
    status = shared_rig.until_phase("Failed" if ends else "Succeeded", name=job)
    assert status["history"][0].get("rule") == (None if name == "other-code" else "config")
    assert status["restarts"]["total"] == (0 if ends else 1)
    assert status["restarts"]["counted"] == (0 if ends or name == "uncounted" else 1)
    if ends:
        failed = next(each for each in status["conditions"] if each["type"] == "Failed")
        assert failed["reason"] == "FailJobRule"
        assert "rule config" in failed["message"]


@pytest.mark.parametrize(("state", "ends"), [("True", True), ("False", False)], ids=["True", "False"])
def test_a_rule_matches_a_condition_of_the_failed_pod(shared_rig: Rig, state: str, ends: bool) -> None:
    job = f"condition-{state.lower()}"
    shared_rig.options[job] = replace(QUICK, total_steps=60, seconds_per_step=0.05, crash_step=40, crash_code=9)
    rule = {"name": "gpu", "action": "FailJob", "onPodConditions": [{"type": "example.test/GpuLost", "status": state}]}
    shared_rig.apply(job, failurePolicy={"rules": [rule], "backoff": NO_WAIT})
    wait_for("it runs", lambda: shared_rig.status(job).get("phase") == "Running")
    condition = {"type": "example.test/GpuLost", "status": "True", "reason": "Xid79"}
    shared_rig.core.patch_namespaced_pod_status(
        f"{job}-1-0", shared_rig.namespace, {"status": {"conditions": [condition]}}
    )
    status = shared_rig.until_phase("Failed" if ends else "Succeeded", name=job)
    assert status["history"][0].get("rule") == ("gpu" if ends else None)


def test_max_restarts_is_how_many_count(shared_rig: Rig) -> None:
    shared_rig.options["twice"] = replace(QUICK, crash_step=15, crash_attempts=99, save_every=5)
    shared_rig.apply("twice", failurePolicy={"maxRestarts": 2, "maxRestartsWithoutProgress": 9, "backoff": NO_WAIT})
    status = shared_rig.until_phase("Failed", name="twice")
    assert (status["attempt"], status["restarts"]["counted"]) == (3, 2)
    assert next(each for each in status["conditions"] if each["type"] == "Failed")["reason"] == "RestartLimit"


def test_the_wait_after_an_attempt_without_progress_is_what_backoff_says(shared_rig: Rig) -> None:
    """Up to a fifth of it is jitter. The status has whole seconds."""
    shared_rig.options["wait"] = replace(QUICK, crash_step=5, crash_attempts=99)
    shared_rig.apply("wait", failurePolicy={"backoff": {"initialSeconds": 600, "maxSeconds": 700}})
    wait_for("a wait", lambda: (shared_rig.status("wait").get("restarts") or {}).get("nextTime"))
    restarts = shared_rig.status("wait")["restarts"]
    wait = datetime.fromisoformat(restarts["nextTime"]) - datetime.fromisoformat(restarts["lastTime"])
    assert 479 <= wait.total_seconds() <= 601
    shared_rig.delete("wait")


def test_the_deadline_ends_a_job_that_is_active_for_too_long(shared_rig: Rig) -> None:
    shared_rig.options["late"] = LONG
    shared_rig.apply("late", activeDeadlineSeconds=2)
    status = shared_rig.until_phase("Failed", name="late")
    failed = next(each for each in status["conditions"] if each["type"] == "Failed")
    assert (failed["reason"], "2 s" in failed["message"]) == ("DeadlineExceeded", True)
    wait_for("no pod runs", lambda: not any(each.pod.startswith("late-") for each in shared_rig.kubelet.running()))


def test_a_finished_job_is_deleted_after_its_time_to_live(shared_rig: Rig) -> None:
    shared_rig.options["brief"] = QUICK
    shared_rig.apply("brief", ttlSecondsAfterFinished=1)
    wait_for("it is deleted", lambda: not shared_rig.exists("brief"))
    assert [entry.step for entry in shared_rig.catalog("brief").live()] == [10, 20, 30]


def test_a_job_of_another_controller_is_left_alone(shared_rig: Rig) -> None:
    shared_rig.apply("foreign", managedBy="example.test/other")
    shared_rig.apply("ours", managedBy="everstep.dev/operator")
    wait_for("the other one is seen", lambda: shared_rig.status("ours").get("phase"))
    assert shared_rig.status("foreign") == {}
    assert not [pod for pod in shared_rig.pods() if pod.metadata.name.startswith("foreign-")]
    shared_rig.delete("ours")
