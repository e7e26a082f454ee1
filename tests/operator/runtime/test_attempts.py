"""A job's way through its attempts on a real API server and real object storage, with the operator as a process."""

from __future__ import annotations

from dataclasses import replace

from tests.support.rig import Rig
from tests.support.waiting import wait_for
from tests.trainers.lite import Options, chain

QUICK = Options(total_steps=30, seconds_per_step=0.02, save_every=10, heartbeat_seconds=0.2)
MEANT_TO_STOP = replace(QUICK, total_steps=600, seconds_per_step=0.05)
"""Of a first attempt: what ends it comes long before its own end, on a busy machine too."""
REST = replace(QUICK, total_steps=600, seconds_per_step=0.002, save_every=100)


def test_a_job_runs_to_success(rig: Rig) -> None:
    rig.options[0] = QUICK
    rig.apply()
    status = rig.until_phase("Succeeded")
    assert status["attempt"] == 1
    assert status["lastCheckpoint"]["step"] == 30
    run = rig.kubelet.container("job-1-0").run
    assert run.state == chain(30)
    assert [entry.step for entry in rig.catalog().live()] == [10, 20, 30]


def test_a_failed_pod_is_followed_by_an_attempt_that_resumes_the_newest_commit(rig: Rig) -> None:
    rig.options[1] = replace(QUICK, crash_step=25, crash_code=9)
    rig.options[0] = QUICK
    rig.apply()
    status = rig.until_phase("Succeeded")
    assert status["attempt"] == 2
    assert status["restarts"]["total"] == 1
    entries = rig.catalog().live()
    assert [(entry.step, entry.attempt) for entry in entries] == [(10, 1), (20, 1), (30, 2)]
    second = rig.kubelet.container("job-2-0")
    assert second.environment["EVERSTEP_RESUME_STEP"] == "20"
    assert second.environment["EVERSTEP_RESUME_PATH"].endswith(entries[1].location)
    assert second.run.state == chain(30)
    ended = status["history"][0]
    assert (ended["attempt"], ended["code"], ended["pod"]) == (1, 9, "job-1-0")
    assert "told to crash at step 25" in ended["message"]
    assert status["resumedFrom"]["step"] == 20
    assert sorted(pod.metadata.name for pod in rig.pods()) == ["job-2-0", "job-2-1"]


def test_a_deleted_pod_is_followed_by_an_attempt(rig: Rig) -> None:
    rig.options.update({1: MEANT_TO_STOP, 0: REST})
    rig.apply()
    rig.until_running(1)
    wait_for("a commit", lambda: rig.status().get("lastCheckpoint"))
    rig.core.delete_namespaced_pod("job-1-1", rig.namespace, grace_period_seconds=0)
    rig.until_running(2)
    status = rig.until_phase("Succeeded")
    assert status["attempt"] == 2
    assert rig.kubelet.container("job-2-0").run.state == chain(600)


def test_what_a_torn_gang_has_lost_is_told_by_the_pod_that_outlives_it(rig: Rig) -> None:
    """However old the heartbeat is: here it was never written again."""
    rig.options[0] = replace(QUICK, total_steps=60)
    rig.options[1] = replace(rig.options[0], hang_step=17, heartbeat_seconds=3600, ignore_sigterm=True)
    rig.apply()
    rig.until_running(1)
    wait_for("a commit, and a hang beyond it", lambda: rig.kubelet.container("job-1-0").run.hung)
    rig.core.delete_namespaced_pod("job-1-1", rig.namespace, grace_period_seconds=0)
    rig.until_running(2)
    status = rig.until_phase("Succeeded")
    assert (status["history"][0]["reason"], status["history"][0]["toStep"]) == ("PodDeleted", 17)
    assert (status["resumedFrom"]["step"], status["recovery"]["lostSteps"]) == (10, 7)


def test_suspend_saves_stops_and_resumes_where_it_stopped(rig: Rig) -> None:
    rig.options.update({1: MEANT_TO_STOP, 0: REST})
    rig.apply()
    rig.until_running(1)
    wait_for("a commit", lambda: rig.status().get("lastCheckpoint"))
    rig.patch({"spec": {"suspend": True}})
    rig.until_phase("Suspended")
    wait_for("no pods", lambda: not rig.pods())
    stopped = rig.kubelet.container("job-1-0").run.step
    assert rig.catalog().live()[-1].step == stopped
    rig.patch({"spec": {"suspend": False}})
    status = rig.until_phase("Succeeded")
    assert rig.kubelet.container("job-2-0").environment["EVERSTEP_RESUME_STEP"] == str(stopped)
    assert status.get("restarts", {}).get("total", 0) == 0
    assert rig.kubelet.container("job-2-0").run.state == chain(600)


def test_a_change_of_mind_while_the_gang_saves_does_not_cost_the_save(rig: Rig) -> None:
    rig.options.update({1: MEANT_TO_STOP, 0: REST})
    rig.apply()
    rig.until_running(1)
    wait_for("a commit", lambda: rig.status().get("lastCheckpoint"))
    rig.patch({"spec": {"suspend": True}})
    wait_for("the stop is recorded", lambda: rig.status().get("history"))
    rig.patch({"spec": {"suspend": False}})
    rig.until_phase("Succeeded")
    stopped = rig.kubelet.container("job-1-0").run.step
    assert rig.kubelet.container("job-2-0").environment["EVERSTEP_RESUME_STEP"] == str(stopped)


def test_retention_keeps_what_it_was_told_to(rig: Rig) -> None:
    rig.options[0] = replace(QUICK, total_steps=80)
    rig.apply(checkpoint={"keepLast": 2, "keepEvery": 30})
    rig.until_phase("Succeeded")
    wait_for("only those are left", lambda: [e.step for e in rig.catalog().live()] == [30, 60, 70, 80])
    wait_for("no intents are left", lambda: not rig.catalog().removing)
    keys = {info.key.split("/")[1] for info in rig.store().list("checkpoints/")}
    assert keys == {entry.location.split("/")[1] for entry in rig.catalog().live()}


def test_deletion_policy_delete_removes_all_that_was_written(rig: Rig) -> None:
    rig.options[0] = QUICK
    rig.apply(deletionPolicy="Delete")
    rig.until_phase("Succeeded")
    rig.delete()
    wait_for("the job is gone", lambda: not rig.exists())
    assert list(rig.store().list("")) == []
    assert "came to no end" not in rig.operator.tail()


def test_deletion_policy_retain_leaves_storage_alone_and_a_new_job_of_the_name_goes_on(rig: Rig) -> None:
    rig.options[0] = QUICK
    rig.apply()
    rig.until_phase("Succeeded")
    rig.delete()
    wait_for("the job is gone", lambda: not rig.exists())
    assert [entry.step for entry in rig.catalog().live()] == [10, 20, 30]
    rig.options[0] = replace(QUICK, total_steps=50)
    wait_for("its pods are gone", lambda: not rig.pods())
    rig.apply()
    status = rig.until_phase("Succeeded")
    assert status["attempt"] == 2
    assert rig.kubelet.container("job-2-0").environment["EVERSTEP_RESUME_STEP"] == "30"


def test_resume_from_another_jobs_checkpoint_forks_it(rig: Rig) -> None:
    rig.options[0] = QUICK
    rig.apply("parent")
    rig.until_phase("Succeeded", name="parent")
    source = rig.catalog("parent").live()[1]
    root = f"s3://{rig.bucket}/jobs/{rig.namespace}/parent"
    rig.apply("child", resume={"mode": "fromPath", "path": f"{root}/{source.location}"})
    rig.until_phase("Succeeded", name="child")
    child = rig.catalog("child")
    assert child.source is not None
    assert child.source.digest == source.digest
    assert rig.kubelet.container("child-1-0").environment["EVERSTEP_RESUME_STEP"] == "20"
    assert rig.kubelet.container("child-1-0").run.state == chain(30)
    assert [hold.location for hold in rig.catalog("parent").holds] == [source.location]


def test_a_resume_path_that_does_not_exist_fails_the_job_and_says_so(rig: Rig) -> None:
    rig.apply(resume={"mode": "fromPath", "path": f"s3://{rig.bucket}/jobs/{rig.namespace}/nobody"})
    status = rig.until_phase("Failed")
    failed = next(each for each in status["conditions"] if each["type"] == "Failed")
    assert failed["reason"] == "ResumePathNotFound"
    assert "nobody" in failed["message"]
    assert not rig.pods()


def test_attempts_without_a_commit_end_the_job(rig: Rig) -> None:
    rig.options[0] = replace(QUICK, crash_step=5, crash_attempts=99)
    rig.apply(failurePolicy={"backoff": {"initialSeconds": 0, "maxSeconds": 0}})
    status = rig.until_phase("Failed")
    assert status["attempt"] == 3
    assert [each["attempt"] for each in status["history"]] == [1, 2, 3]
    wait_for("no pods run", lambda: not rig.kubelet.running())
