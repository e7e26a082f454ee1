"""Planned stops: suspension, success, the deadline, time to live, deletion."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from everstep.catalog import Best, Retention
from everstep.catalog import transitions as t
from everstep_operator.api import InvalidJobError, Phase
from everstep_operator.api.status import Leaving
from everstep_operator.build.names import FINALIZER
from everstep_operator.reconcile import decide
from everstep_operator.reconcile.observation import ConditionView, ContainerView, Problem, ProblemKind, Results, Stored
from everstep_operator.reconcile.plan import (
    AddFinalizer,
    DeleteCheckpoints,
    DeleteJob,
    DeletePod,
    FinishRemovals,
    RemoveFinalizer,
    Retire,
    Sweep,
)
from everstep_operator.reconcile.retention import best, policy
from tests.support.observations import (
    OWNER,
    at,
    beat,
    claimed,
    committed,
    ended,
    failed,
    fenced,
    job,
    observe,
    pod,
    record,
    running,
    succeeded,
)

PODS = (pod(0), pod(1))
DONE = (succeeded(0), succeeded(1))
DENIED = Problem(ProblemKind.REFUSED, "StorageRefused", "delete: AccessDenied")
LONG_AGO = ContainerView(exit_code=0, reason="Completed", finished=at(-30))


def finished(phase: str = "Succeeded", reason: str = "Completed", **status: Any) -> dict[str, Any]:
    history = [{"attempt": 1, "reason": reason}]
    return {"phase": phase, "attempt": 1, "history": history, "completionTime": at(-10).isoformat(), **status}


def test_suspension_is_recorded_before_the_pods_get_their_own_grace() -> None:
    plan = decide(observe(job(running(), suspend=True), *PODS, catalog=committed(30)))
    assert plan.actions == (DeletePod("job-1-0", "pod-1-0", None), DeletePod("job-1-1", "pod-1-1", None))
    assert [(entry.attempt, entry.reason) for entry in plan.status.history] == [(1, "Suspended")]
    assert plan.status.phase is Phase.RUNNING
    condition = plan.status.condition("Suspended")
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "Stopping")
    assert (plan.status.active_since, plan.status.active_seconds) == (None, 3600)
    assert [event.reason for event in plan.events if event.reason != "CheckpointCommitted"] == ["Suspended"]


def test_it_is_told_when_they_are_gone_and_nothing_follows() -> None:
    stopping = decide(observe(job(running(), suspend=True), *PODS, catalog=committed(30))).status.dump()
    for pods in ((), (failed(0), failed(1))):
        plan = decide(observe(job(stopping, suspend=True), *pods, catalog=committed(30, 37)))
        assert plan.status.phase is Phase.SUSPENDED
        assert plan.status.is_true("Suspended")
        assert plan.status.last_checkpoint is not None
        assert plan.status.last_checkpoint.step == 37
        resting = decide(observe(job(plan.status.dump(), suspend=True), catalog=committed(30, 37), now=at(9999)))
        assert (resting.status, resting.actions, resting.requeue_after) == (plan.status, (), None)


def test_a_job_that_rests_complains_of_nothing_that_is_over() -> None:
    since = {"status": "True", "reason": "Stalled", "message": "", "lastTransitionTime": at(-60).isoformat()}
    down = {**since, "type": "StorageReady", "status": "False", "reason": "StorageUnavailable"}
    status = ended(reason="Stalled", conditions=[{**since, "type": "Stalled"}, down])
    plan = decide(observe(job(status, suspend=True), catalog=committed(30)))
    assert (plan.status.is_true("Stalled"), plan.status.is_true("StorageReady")) == (False, True)
    again = decide(observe(job(plan.status.dump(), suspend=True), catalog=committed(30), now=at(60)))
    assert again.status == plan.status


def test_the_step_of_a_job_that_rests_is_not_below_what_it_saved_last() -> None:
    of = job(running(), suspend=True)
    status = decide(observe(of, *PODS, catalog=committed(30), heartbeat=beat(33, total_steps=50))).status.dump()
    plan = decide(observe(job(status, suspend=True), catalog=committed(30, 37)))
    assert plan.status.progress is not None
    assert (plan.status.progress.step, plan.status.progress.summary) == (37, "37/50 (74%)")
    resting = decide(observe(job(plan.status.dump(), suspend=True), catalog=committed(30, 37), now=at(60)))
    assert resting.status == plan.status


def test_a_job_may_be_born_suspended() -> None:
    plan = decide(observe(job(suspend=True)))
    assert (plan.status.phase, plan.actions, plan.status.history) == (Phase.SUSPENDED, (), [])


@pytest.mark.parametrize(
    ("pods", "heartbeat", "suspends"),
    [
        pytest.param(PODS, beat(30, phase="finished", still=5), False, id="its training is over"),
        pytest.param((succeeded(0), pod(1)), None, False, id="a pod has succeeded"),
        pytest.param(PODS, beat(30, phase="finished", still=30), True, id="but its pods do not end"),
        pytest.param(PODS, beat(30, phase="finished", in_phase=30), True, id="but it says so again and again"),
        pytest.param((pod(0, phase="Succeeded", container=LONG_AGO), pod(1)), None, True, id="but the other goes on"),
        pytest.param(PODS, beat(29), True, id="it trains"),
    ],
)
def test_a_job_that_comes_to_its_end_just_now_is_not_suspended(pods: Any, heartbeat: Any, suspends: bool) -> None:
    of = job(running(), suspend=True)
    plan = decide(observe(of, *pods, catalog=committed(30), heartbeat=heartbeat))
    assert [entry.reason for entry in plan.status.history] == (["Suspended"] if suspends else [])
    if not suspends:
        assert (plan.actions, plan.requeue_after) == ((), 5.0)
        ended = decide(observe(job(plan.status.dump(), suspend=True), *DONE, catalog=committed(30)))
        assert (ended.status.phase, ended.status.is_true("Suspended")) == (Phase.SUCCEEDED, False)


def test_to_resume_is_no_restart() -> None:
    status = decide(observe(job(running(), suspend=True), *PODS, catalog=committed(30))).status.dump()
    status = decide(observe(job(status, suspend=True), catalog=committed(30))).status.dump()
    plan = decide(observe(job(status), catalog=fenced(2, committed(30)), now=at(100)))
    assert [type(action).__name__ for action in plan.actions] == ["CreatePod", "CreatePod"]
    assert plan.status.restarts is not None
    assert plan.status.restarts.total == 0
    assert plan.status.active_since == at(100)
    assert not plan.status.is_true("Suspended")


def test_success() -> None:
    plan = decide(
        observe(job(running()), *DONE, catalog=committed(30), heartbeat=beat(30, phase="finished", total_steps=30))
    )
    assert plan.status.phase is Phase.SUCCEEDED
    assert plan.status.is_true("Complete")
    assert not plan.status.is_true("Running")
    assert plan.status.completion_time == at(0)
    assert plan.status.progress is not None
    assert plan.status.progress.summary == "30/30 (100%)"
    assert [(entry.attempt, entry.reason) for entry in plan.status.history] == [(1, "Completed")]
    assert [event.reason for event in plan.events][-1] == "Succeeded"
    assert plan.actions == (), "pods stay for their logs"
    after = decide(observe(job(plan.status.dump()), *DONE, catalog=committed(30), now=at(9999)))
    assert (after.status, after.events, after.actions, after.requeue_after) == (plan.status, (), (), None)


def test_a_pod_that_was_seen_to_succeed_may_go_before_the_others_end() -> None:
    """Of a script without the library, whose heartbeat would tell."""
    of = job(running())
    seen = decide(observe(of, succeeded(0), pod(1), catalog=fenced())).status
    assert seen.gang is not None
    assert seen.gang.succeeded == [0]
    gone = decide(observe(job(seen.dump()), pod(1), catalog=fenced(), now=at(60)))
    assert (gone.status.phase, gone.status.history, gone.actions) == (Phase.RUNNING, [], ())
    done = decide(observe(job(gone.status.dump()), succeeded(1), catalog=fenced(), now=at(90))).status
    assert done.phase is Phase.SUCCEEDED
    assert done.gang is not None
    assert done.gang.succeeded is None
    lost = decide(observe(job(seen.dump()), catalog=fenced(), now=at(60))).status
    assert lost.history[-1].pod == "job-1-1", "only the one that was still at work"
    stopped = replace(succeeded(0), deleting=True)
    assert decide(observe(of, stopped, pod(1), catalog=fenced())).status.gang == seen.gang.model_copy(
        update={"succeeded": None, "leaving": Leaving(pod="job-1-0", node="node-a")}
    ), "a pod that is deleted may end with 0 on SIGTERM"
    beats = decide(observe(of, succeeded(0), pod(1), catalog=claimed(), heartbeat=beat(3))).status
    assert beats.gang is not None
    assert beats.gang.succeeded is None


def test_storage_that_is_back_after_the_end_is_told() -> None:
    down = {"type": "StorageReady", "status": "False", "reason": "StorageUnavailable", "message": ""}
    status = finished(conditions=[{**down, "lastTransitionTime": at(-60).isoformat()}])
    away = Stored(problem=Problem(ProblemKind.UNAVAILABLE, "StorageUnavailable", "no answer"))
    assert not decide(observe(job(status), *DONE, stored=away)).status.is_true("StorageReady")
    plan = decide(observe(job(status), *DONE, catalog=committed(30)))
    assert plan.status.is_true("StorageReady")
    assert decide(observe(job(plan.status.dump()), *DONE, catalog=committed(30), now=at(60))).status == plan.status


@pytest.mark.parametrize("pods", [DONE, (pod(0), failed(1, code=78))])
def test_no_edit_waits_for_an_attempt_that_never_comes(pods: Any) -> None:
    waiting = {"type": "SpecApplied", "status": "False", "reason": "NextAttempt", "message": ""}
    status = running({"conditions": [{**waiting, "lastTransitionTime": at(-60).isoformat()}]})
    read = Results(logs={"job-1-1": ""})
    plan = decide(observe(job(status), *pods, catalog=committed(30), results=read))
    assert plan.status.phase in (Phase.SUCCEEDED, Phase.FAILED)
    assert plan.status.condition("SpecApplied") is None


def test_a_sidecar_does_not_keep_a_finished_job() -> None:
    pods = (succeeded(0), replace(succeeded(1), phase="Running"))
    plan = decide(observe(job(running()), *pods, catalog=committed(30)))
    assert plan.status.phase is Phase.SUCCEEDED
    assert (plan.actions, plan.requeue_after) == ((), 10.0), "its phase may only lag behind; its log is to stay"
    later = decide(observe(job(plan.status.dump()), *pods, catalog=committed(30), now=at(10)))
    assert later.actions == (DeletePod("job-1-1", "pod-1-1", None),)


def test_a_sidecar_that_failed_does_not_make_a_finished_training_fail() -> None:
    """Kubernetes calls a pod Failed where any of its containers has failed, a week ago or now."""
    plan = decide(observe(job(running()), succeeded(0), replace(succeeded(1), phase="Failed"), catalog=committed(30)))
    assert (plan.status.phase, plan.actions) == (Phase.SUCCEEDED, ())
    evicted = replace(succeeded(1), phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
    drained = replace(
        succeeded(1), phase="Failed", conditions=(ConditionView("DisruptionTarget", "True", "EvictionByEvictionAPI"),)
    )
    for stopped in (evicted, drained):
        plan = decide(observe(job(running()), succeeded(0), stopped, catalog=committed(30)))
        assert plan.status.phase is Phase.RESTARTING, "a script may end with 0 on SIGTERM"


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_an_end_is_for_good(phase: str) -> None:
    status = finished(phase)
    for pods in ((), (pod(0), failed(1)), DONE):
        plan = decide(observe(job(status, suspend=True), *pods, catalog=fenced(2)))
        assert plan.status.phase == phase
        assert not any(type(action).__name__ in ("Fence", "CreatePod") for action in plan.actions)


@pytest.mark.parametrize(
    ("ttl", "wait", "deletes"), [(30, 20, False), (10, None, True), (0, None, True), (None, None, False)]
)
def test_time_to_live(ttl: int | None, wait: float | None, deletes: bool) -> None:
    of = job(finished()) if ttl is None else job(finished(), ttlSecondsAfterFinished=ttl)
    plan = decide(observe(of, catalog=committed(30)))
    assert (plan.requeue_after, DeleteJob("uid-1") in plan.actions) == (wait, deletes)


@pytest.mark.parametrize(
    ("changes", "deletes"),
    [
        pytest.param({}, False, id="retention has work left"),
        pytest.param({"results": Results(deletion=DENIED)}, True, id="but cannot do it"),
        pytest.param({"stored": Stored(committed(10, 20, 30), problem=DENIED)}, True, id="storage is not to be had"),
    ],
)
def test_a_job_lives_until_what_it_does_not_keep_is_removed(changes: dict[str, Any], deletes: bool) -> None:
    of = job(finished(), ttlSecondsAfterFinished=0, checkpoint__keepLast=2)
    plan = decide(observe(of, **{"catalog": committed(10, 20, 30), **changes}))
    assert (DeleteJob("uid-1") in plan.actions) is deletes
    assert (plan.requeue_after == 5) is not deletes
    removing = t.retire(committed(10, 20, 30), {committed(10).checkpoints[0].location}, at(0))
    assert DeleteJob("uid-1") not in decide(observe(of, catalog=removing)).actions
    assert DeleteJob("uid-1") in decide(observe(of, catalog=committed(20, 30))).actions
    assert DeleteJob("uid-1") in decide(observe(of, catalog=removing, now=at(3600))).actions, "not for ever"


def test_a_job_whose_checkpoints_go_with_it_is_not_deleted_without_them() -> None:
    plan = decide(
        observe(job(running(), ttlSecondsAfterFinished=0, deletionPolicy="Delete"), *DONE, catalog=committed())
    )
    assert plan.actions == (AddFinalizer(FINALIZER), DeleteJob("uid-1"))


def test_the_deadline() -> None:
    plan = decide(observe(job(running(), activeDeadlineSeconds=3600), *PODS, catalog=committed(30)))
    condition = plan.status.condition("Failed")
    assert condition is not None
    assert (plan.status.phase, condition.reason) == (Phase.FAILED, "DeadlineExceeded")
    assert plan.actions == (DeletePod("job-1-0", "pod-1-0", None), DeletePod("job-1-1", "pod-1-1", None))


def test_suspended_time_does_not_count() -> None:
    status = running({"activeSeconds": 3000, "activeSince": at(-500).isoformat()})
    of = job(status, activeDeadlineSeconds=3600)
    assert decide(observe(of, *PODS, catalog=committed(30))).status.phase is Phase.RUNNING
    assert decide(observe(of, *PODS, catalog=committed(30), now=at(100))).status.phase is Phase.FAILED


def upkeep(catalog: Any, swept: float | None = 1.0, status: dict[str, Any] | None = None, **spec: Any) -> list[Any]:
    spec = {"checkpoint__keepLast": 2, **spec}
    return list(decide(observe(job(status or running(), **spec), *PODS, catalog=catalog, swept=swept)).actions)


def test_retention() -> None:
    wanted = policy(job(checkpoint__keepLast=2).spec, committed(10))
    assert upkeep(committed(10, 20)) == []
    assert upkeep(committed(10, 20, 30)) == [Retire(wanted), FinishRemovals(8)]
    retired = t.retire(committed(10, 20, 30), {committed(10).checkpoints[0].location}, at(0))
    assert upkeep(retired) == [FinishRemovals(8)], "a removal that was begun is finished"
    assert upkeep(committed(10, 20, 30), checkpoint__keepEvery=10) == []


def test_another_metric_counts_once_a_score_of_it_stands() -> None:
    """Until its next attempt the gang scores by the former one."""
    former = Best(count=1, mode="min", metric="loss")
    scored = committed(10, 20, 30, 40)
    scores = zip(scored.checkpoints, (1.0, 2.0, 3.0, 4.0), strict=True)
    entries = tuple(entry.model_copy(update={"score": score, "score_of": "loss"}) for entry, score in scores)
    catalog = scored.model_copy(update={"checkpoints": entries, "retention": Retention(last=2, best=former)})
    edited = job(checkpoint__keepLast=2, checkpoint__keepBest={"metric": "accuracy", "mode": "max", "count": 2}).spec
    assert best(edited, catalog) == Best(count=2, mode="min", metric="loss")
    newer = (*entries[:-1], entries[-1].model_copy(update={"score_of": "accuracy"}))
    assert best(edited, catalog.model_copy(update={"checkpoints": newer})) == Best(
        count=2, mode="max", metric="accuracy"
    )


@pytest.mark.parametrize(("swept", "sweeps"), [(None, True), (599.0, False), (600.0, True)])
def test_sweeps(swept: float | None, sweeps: bool) -> None:
    assert (Sweep() in upkeep(committed(10), swept)) is sweeps


def test_a_finished_job_is_swept_once() -> None:
    def actions(swept: float | None) -> tuple[Any, ...]:
        return decide(observe(job(finished()), *DONE, catalog=committed(10), swept=swept)).actions

    assert (actions(None), actions(9999.0)) == ((Sweep(),), ())


@pytest.mark.parametrize("owner", ["former", None])
def test_nothing_is_removed_from_a_root_that_is_not_ones_own(owner: str | None) -> None:
    theirs = OWNER.model_copy(update={"uid": owner}) if owner else None
    catalog = committed(10, 20, 30).model_copy(update={"owner": theirs})
    assert not {"Retire", "Sweep", "FinishRemovals"} & {type(a).__name__ for a in upkeep(catalog, None)}


GOING = {"deletionTimestamp": at(-1).isoformat(), "finalizers": [FINALIZER]}


@pytest.mark.parametrize(
    ("policy_", "held", "expected"),
    [
        ("Delete", [], (AddFinalizer(FINALIZER),)),
        ("Delete", [FINALIZER], ()),
        ("Retain", [FINALIZER], (RemoveFinalizer(FINALIZER),)),
        ("Retain", [], ()),
    ],
)
def test_the_finalizer_follows_the_policy(policy_: str, held: list[str], expected: tuple[Any, ...]) -> None:
    of = job(running(), {"finalizers": held}, deletionPolicy=policy_)
    assert decide(observe(of, *PODS, catalog=committed(10))).actions == expected


@pytest.mark.parametrize(
    ("pods", "changes", "expected"),
    [
        pytest.param(PODS, {}, ["DeletePod", "DeletePod"], id="first the pods"),
        pytest.param((), {}, ["DeleteCheckpoints"], id="then the checkpoints"),
        pytest.param((), {"results": Results(checkpoints_deleted=True)}, ["RemoveFinalizer"], id="then the job"),
        pytest.param(
            (),
            {"stored": Stored(problem=Problem(ProblemKind.UNAVAILABLE, "StorageUnavailable", "no"))},
            [],
            id="storage is down",
        ),
    ],
)
def test_deletion_with_the_checkpoints(pods: Any, changes: dict[str, Any], expected: list[str]) -> None:
    of = job(running(), GOING, deletionPolicy="Delete")
    plan = decide(observe(of, *pods, **{"catalog": committed(10), **changes}))
    assert [type(action).__name__ for action in plan.actions] == expected
    assert not plan.again, "it goes on beside the passes: a pass that asks again at once would only spin"
    assert (plan.requeue_after is None) is (RemoveFinalizer(FINALIZER) in plan.actions)


def test_checkpoints_that_cannot_be_deleted_are_a_condition_with_a_way_out() -> None:
    denied = Problem(ProblemKind.REFUSED, "StorageRefused", "delete: AccessDenied")
    of = job(running(), GOING, deletionPolicy="Delete")
    plan = decide(observe(of, catalog=committed(10), results=Results(deletion=denied)))
    assert plan.actions == (DeleteCheckpoints(),), "the actor's pauses say when"
    condition = plan.status.condition("StorageReady")
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "StorageRefused")
    assert "deletionPolicy is Retain" in condition.message
    assert [event.reason for event in plan.events] == ["StorageRefused"]
    assert plan.requeue_after is not None
    done = decide(observe(of, catalog=committed(10), results=Results(deletion=denied, checkpoints_deleted=True)))
    assert done.actions == (RemoveFinalizer(FINALIZER),)


def test_a_job_whose_storage_was_refused_before_it_began_does_not_wait_for_it() -> None:
    refused = Stored(problem=Problem(ProblemKind.REFUSED, "StorageLocationNotAllowed", "no"))
    never = decide(observe(job({"phase": "Failed"}, GOING, deletionPolicy="Delete"), stored=refused))
    assert never.actions == (RemoveFinalizer(FINALIZER),)
    ran = decide(observe(job(running(), GOING, deletionPolicy="Delete"), stored=refused))
    assert ran.actions == ()


def test_to_resume_at_once_does_not_fence_a_gang_that_still_saves() -> None:
    status = decide(observe(job(running(), suspend=True), *PODS, catalog=committed(30))).status.dump()
    saving = (pod(0, deleting=True, deletion_grace=30), succeeded(1))
    plan = decide(observe(job(status), *saving, catalog=committed(30)))
    assert "Fence" not in {type(action).__name__ for action in plan.actions}
    condition = plan.status.condition("Running")
    assert condition is not None
    assert (condition.reason, plan.requeue_after) == ("Stopping", 5.0)
    later = decide(observe(job(plan.status.dump()), succeeded(0), succeeded(1), catalog=committed(30, 37)))
    assert later.again, "then the next attempt"


def test_a_job_that_can_be_read_again_says_so() -> None:
    bad = {"type": "Valid", "status": "False", "reason": "InvalidSpec", "lastTransitionTime": at(-99).isoformat()}
    plan = decide(observe(job(running({"conditions": [bad]})), *PODS, catalog=committed(30)))
    assert plan.status.is_true("Valid")
    assert decide(observe(job(running()), *PODS, catalog=committed(30))).status.condition("Valid") is None


@pytest.mark.parametrize("most", [10**15, 2**53 - 1])
def test_what_a_tenant_says_never_breaks_a_decision(most: int) -> None:
    told = beat(30, total_steps=most)
    assert decide(observe(job(running()), *PODS, catalog=committed(30), heartbeat=told)).status.progress is not None
    dead = failed(0, message=record(rank=most, exit_code=1, exception="E", message="m", step=most))
    assert decide(observe(job(running()), dead, pod(1), catalog=committed(30))).status.history


@pytest.mark.parametrize("line", ["rank : {}\nexitcode : 1", "rank : 0\nexitcode : -{}", "failed (exitcode: -{})"])
def test_no_number_of_a_tenant_breaks_a_decision(line: str) -> None:
    log = "Root Cause (first observed failure)\n" + line.format("9" * 5000)
    read = Results(logs={"job-1-0": log, "job-1-1": log})
    assert decide(observe(job(running()), failed(0), pod(1), catalog=committed(30), results=read)).status.history
    twice = claimed(1, committed(30), "again")
    plan = decide(observe(job(running()), *PODS, catalog=twice, heartbeat=beat(31, epoch=3), results=read))
    assert plan.status.restarts is not None
    assert plan.status.restarts.in_place == 1


def test_no_exit_code_breaks_a_decision() -> None:
    read = Results(logs={"job-1-0": ""})
    dead = failed(0, code=-(2**31), signal=2**31 - 1)
    assert decide(observe(job(running()), dead, pod(1), catalog=committed(30), results=read)).status.history


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00"])
def test_no_clock_of_a_tenant_breaks_a_decision(time: str) -> None:
    dead = failed(0, message=record(rank=0, exit_code=1, exception="E", message="m", time=time))
    plan = decide(observe(job(running()), dead, pod(1), catalog=committed(30), heartbeat=beat(31, time=time)))
    assert plan.status.recovery is not None
    catalog = committed(30)
    stamped = tuple(
        entry.model_copy(update={"committed": datetime.fromisoformat(time)}) for entry in catalog.checkpoints
    )
    dated = catalog.model_copy(update={"checkpoints": stamped})
    last = decide(observe(job(running()), *PODS, catalog=dated, heartbeat=beat(31))).status.dump()["lastCheckpoint"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", last["committed"]), "what the API server takes for a time"
    catalog = fenced(2, catalog)
    gang = (pod(0, 2), pod(1, 2))
    for first in (time, at(-1).isoformat()):
        seen = beat(31, 2, first_step=first, time=time, phase_since=time)
        plan = decide(observe(job(plan.status.dump()), *gang, catalog=catalog, heartbeat=seen, now=at(60)))
        assert plan.status.phase is Phase.RUNNING


def test_the_longest_storage_uri_fits_all_that_is_told_of_it() -> None:
    long = "s3://bucket/" + "a" * (768 - len("s3://bucket/"))
    plan = decide(observe(job(running(), checkpoint__storage__uri=long), *PODS, catalog=committed(30)))
    last = plan.status.last_checkpoint
    assert last is not None
    assert last.location.startswith(long)
    with pytest.raises(InvalidJobError, match="768"):
        job(running(), checkpoint__storage__uri=long + "a")
    far = "s3://bucket/" + "a" * (1900 - len("s3://bucket/")) + "/" + last.location.rsplit("default/job/")[1]
    catalog = committed(30)
    assert catalog.claim is not None
    forked = catalog.model_copy(update={"claim": catalog.claim.model_copy(update={"resumed": far, "epoch": 9})})
    assert decide(observe(job(running()), *PODS, catalog=forked, results=Results(logs={"x": ""}))).status.resumed_from


def test_deletion_spares_what_another_cluster_owns() -> None:
    theirs = OWNER.model_copy(update={"cluster": "elsewhere"})
    catalog = committed(10).model_copy(update={"owner": theirs})
    plan = decide(observe(job({}, GOING, deletionPolicy="Delete"), catalog=catalog))
    assert plan.actions == (RemoveFinalizer(FINALIZER),)


def test_deletion_of_a_job_that_never_began() -> None:
    assert decide(observe(job({}, GOING, deletionPolicy="Delete"))).actions == (RemoveFinalizer(FINALIZER),)


def test_retained_checkpoints_outlive_the_job() -> None:
    of = job(running(), {**GOING, "finalizers": []})
    assert decide(observe(of, catalog=committed(10))).actions == ()
    changed = decide(observe(job(running(), GOING), catalog=committed(10)))
    assert changed.actions == (RemoveFinalizer(FINALIZER),), "the policy was changed to Retain"


@pytest.mark.parametrize(
    ("policy_", "reason", "grace"),
    [("Retain", None, None), ("Delete", None, 1), ("Retain", "SIGKILL", 1), ("Retain", "Stalled", 15)],
)
def test_pods_of_a_deleted_job_save_what_is_to_stay(policy_: str, reason: str | None, grace: int | None) -> None:
    """As they do where nothing holds the job and the garbage collector deletes them."""
    held = [FINALIZER] if policy_ == "Delete" else ["foregroundDeletion"]
    status = running() if reason is None else ended(reason=reason)
    of = job(status, {**GOING, "finalizers": held}, deletionPolicy=policy_)
    assert decide(observe(of, pod(0), catalog=committed(10))).actions == (DeletePod("job-1-0", "pod-1-0", grace),)


def test_a_job_that_is_being_deleted_starts_nothing() -> None:
    of = job({}, {**GOING, "finalizers": ["foregroundDeletion"]})
    plan = decide(observe(of, catalog=claimed()))
    assert (plan.actions, plan.again) == ((), False)
