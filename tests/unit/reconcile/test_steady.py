"""A gang that runs: what is told of it, how often, and that a steady state writes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from everstep_operator.api import Phase
from everstep_operator.build import names
from everstep_operator.reconcile import decide
from everstep_operator.reconcile.observation import (
    ConditionView,
    ContainerView,
    Observation,
    PodView,
    Problem,
    ProblemKind,
    Results,
    Stored,
)
from everstep_operator.reconcile.plan import AddFinalizer, DeletePod, EnsureService, MarkPod, Plan
from tests.support.observations import (
    at,
    beat,
    claimed,
    committed,
    crashed,
    fenced,
    job,
    observe,
    pod,
    running,
    service,
)

PODS = (pod(0), pod(1))


def settled(**changes: Any) -> tuple[dict[str, Any], Plan]:
    """The status that a running job comes to, and the plan that wrote it."""
    plan = decide(observe(job(running()), *PODS, **changes))
    return plan.status.dump(), plan


def test_a_steady_state_writes_nothing() -> None:
    status, _ = settled(catalog=committed(30), heartbeat=beat(36))
    for seconds in (5, 60, 3600):
        aged = beat(36, beat_age=min(seconds, 500))
        plan = decide(observe(job(status), *PODS, catalog=committed(30), heartbeat=aged, now=at(seconds)))
        assert (plan.status.dump(), plan.events, plan.actions, plan.again) == (status, (), (), False)
        assert plan.requeue_after == 5


@pytest.mark.parametrize(
    ("change", "seconds", "writes", "wait"),
    [
        pytest.param({"heartbeat": beat(40)}, 5, False, 5, id="a step, too soon"),
        pytest.param({"heartbeat": beat(40)}, 12, False, 3, id="a step, nearly due"),
        pytest.param({"heartbeat": beat(40)}, 15, True, 5, id="a step, due"),
        pytest.param({"heartbeat": beat(36, metrics={"loss": 2.0})}, 16, True, 5, id="a metric, due"),
        pytest.param({"catalog": committed(30, 40)}, 1, True, 5, id="a commit, at once"),
        pytest.param({"pods": (pod(0),)}, 1, True, None, id="a failure, at once"),
    ],
)
def test_what_is_written_and_when(change: dict[str, Any], seconds: float, writes: bool, wait: float | None) -> None:
    status, _ = settled(catalog=committed(30), heartbeat=beat(36))
    seen = {"catalog": committed(30), "heartbeat": beat(36), "pods": PODS, **change}
    plan = decide(observe(job(status), *seen.pop("pods"), now=at(seconds), **seen))
    assert (plan.status.dump() != status) is writes
    assert plan.requeue_after == wait


def test_a_clock_that_was_set_back_does_not_hold_progress_up() -> None:
    status, _ = settled(catalog=committed(30), heartbeat=beat(36))
    plan = decide(observe(job(status), *PODS, catalog=committed(30), heartbeat=beat(40), now=at(-3600)))
    assert plan.status.progress is not None
    assert (plan.status.progress.step, plan.requeue_after) == (40, 5)


def test_progress() -> None:
    _, plan = settled(
        catalog=committed(30),
        heartbeat=beat(1234, total_steps=10_000, seconds_per_step=2.0, metrics={"loss": 2.12999, "lr": 1e-4, "n": 1e9}),
    )
    progress = plan.status.progress
    assert progress is not None
    assert progress.summary == "1234/10000 (12%)"
    assert (progress.step, progress.total_steps, progress.from_step) == (1234, 10_000, 0)
    assert progress.estimated_completion == at(2 * (10_000 - 1234))
    assert progress.metrics == {"loss": "2.13", "lr": "0.0001", "n": "1e+09"}


@pytest.mark.parametrize(
    ("found", "summary"),
    [
        (beat(7), "step 7"),
        (beat(0, total_steps=10), "0/10 (0%)"),
        (beat(12, total_steps=10), "12/10 (100%)"),
        (beat(7, phase="starting"), "no step yet"),
        (beat(7, phase="restoring"), "no step yet"),
        (beat(7, attempt=9), "no step yet"),
    ],
)
def test_summary(found: Any, summary: str) -> None:
    _, plan = settled(catalog=committed(30), heartbeat=found)
    assert (plan.status.progress and plan.status.progress.summary) == summary


def test_a_hostile_heartbeat_stays_within_bounds() -> None:
    metrics = {f"{'m' * 70}": 1.0, "": 2.0, **{f"m{n:03}": 1.0 for n in range(100)}}
    found = beat(1, total_steps=10**11, seconds_per_step=1e9, metrics=metrics)
    _, plan = settled(catalog=committed(30), heartbeat=found)
    assert plan.status.progress is not None
    assert len(plan.status.progress.metrics or {}) == 32
    assert plan.status.progress.estimated_completion is None


def test_checkpoints() -> None:
    catalog = committed(40, before=committed(10, 20), score=1.25)
    plan = decide(
        observe(job(running(), checkpoint__keepBest={"metric": "loss"}), *PODS, catalog=catalog, heartbeat=beat(41))
    )
    last, found = plan.status.last_checkpoint, plan.status.checkpoints
    assert last is not None
    assert found is not None
    assert (last.step, last.size, last.attempt, last.committed) == (40, "1.2 GiB", 1, at(-60))
    assert last.location.startswith("s3://bucket/prefix/default/job/checkpoints/step_000000000040-")
    assert (found.count, found.total_size, found.quarantined) == (3, "3.6 GiB", None)
    assert found.best is not None
    assert (found.best.step, found.best.score) == (40, "1.25")
    assert plan.status.is_true("CheckpointAvailable")
    named = tuple(entry.model_copy(update={"score_of": "loss"}) for entry in catalog.checkpoints)
    other = job(running(), checkpoint__keepBest={"metric": "accuracy"})
    found = decide(observe(other, *PODS, catalog=catalog.model_copy(update={"checkpoints": named}))).status.checkpoints
    assert found is not None
    assert found.best is None, "a score of another metric"


def test_a_quarantined_checkpoint_is_reported() -> None:
    catalog = committed(10, 20)
    damaged = tuple(e.model_copy(update={"state": "quarantined"}) if e.step == 20 else e for e in catalog.checkpoints)
    status, _ = settled(catalog=catalog)
    plan = decide(observe(job(status), *PODS, catalog=catalog.model_copy(update={"checkpoints": damaged})))
    assert plan.status.checkpoints is not None
    assert (plan.status.checkpoints.count, plan.status.checkpoints.quarantined) == (1, 1)
    assert [event.reason for event in plan.events] == ["CheckpointQuarantined"]


def test_a_job_without_any_checkpoint_left_does_not_say_that_it_has_one() -> None:
    catalog = committed(10)
    status, _ = settled(catalog=catalog)
    damaged = tuple(entry.model_copy(update={"state": "quarantined"}) for entry in catalog.checkpoints)
    plan = decide(observe(job(status), *PODS, catalog=catalog.model_copy(update={"checkpoints": damaged})))
    condition = plan.status.condition("CheckpointAvailable")
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "NoCheckpoint")


def test_the_catalog_of_a_former_job_says_nothing_about_this_one() -> None:
    former = committed(10)
    assert former.owner is not None
    former = former.model_copy(update={"owner": former.owner.model_copy(update={"uid": "former"})})
    assert decide(observe(catalog=former)).status.last_checkpoint is None


def starting(*pods: PodView, status: dict[str, Any] | None = None, **changes: Any) -> Observation:
    base = {"phase": "Starting", "gang": {"nodes": 2, "summary": "0 of 2 running", "started": at(-1).isoformat()}}
    return observe(job(running({**base, **(status or {})})), *pods, catalog=fenced(), **changes)


PENDING: dict[str, Any] = {"phase": "Pending", "container": ContainerView(waiting_reason="ContainerCreating")}


def stuck(reason: str, message: str) -> PodView:
    return pod(1, phase="Pending", container=ContainerView(waiting_reason=reason, waiting_message=message))


def unscheduled(message: str) -> PodView:
    condition = ConditionView("PodScheduled", "False", "Unschedulable", message)
    return pod(1, phase="Pending", node=None, container=ContainerView(), conditions=(condition,))


@pytest.mark.parametrize(
    ("second", "reason", "message", "events"),
    [
        (pod(1, **PENDING), "GangStarting", "1 of 2 running", []),
        (
            unscheduled("0/1 nodes are available: 1 Too many pods."),
            "Unschedulable",
            "pod 1 (job-1-1): 0/1 nodes are available: 1 Too many pods.",
            ["Unschedulable"],
        ),
        (
            stuck("ErrImagePull", "not found"),
            "ImagePullBackOff",
            "pod 1 (job-1-1): ErrImagePull: not found",
            ["ImagePullBackOff"],
        ),
        (
            stuck("CreateContainerConfigError", 'secret "s3" not found'),
            "CreateContainerConfigError",
            'pod 1 (job-1-1): CreateContainerConfigError: secret "s3" not found',
            ["CreateContainerConfigError"],
        ),
    ],
)
def test_what_a_gang_that_does_not_start_waits_for(
    second: PodView, reason: str, message: str, events: list[str]
) -> None:
    plan = decide(starting(pod(0), second))
    condition = plan.status.condition("Running")
    assert condition is not None
    assert (plan.status.phase, condition.status, condition.reason, condition.message) == (
        Phase.STARTING,
        "False",
        reason,
        message,
    )
    assert [event.reason for event in plan.events] == events


def test_the_two_messages_of_a_failing_pull_do_not_alternate_in_the_status() -> None:
    first = decide(starting(pod(0), stuck("ErrImagePull", "not found"))).status.dump()
    after = observe(job(first), pod(0), stuck("ImagePullBackOff", "Back-off pulling image"), catalog=fenced())
    assert decide(after).status.dump() == first


def test_what_was_told_stays_while_another_pod_waits_for_the_same() -> None:
    missing = stuck("CreateContainerConfigError", 'secret "s3" not found')
    first = decide(starting(pod(0, **PENDING), missing)).status.dump()
    both = observe(job(first), replace(missing, index=0, name="job-1-0"), missing, catalog=fenced())
    assert decide(both).status.dump() == first
    other = observe(job(first), replace(missing, index=0, name="job-1-0"), pod(1, **PENDING), catalog=fenced())
    condition = decide(other).status.condition("Running")
    assert condition is not None
    assert condition.message.startswith("pod 0 (job-1-0)")


def test_running() -> None:
    plan = decide(starting(pod(0), pod(1, container=ContainerView(running_since=at(0)))))
    assert plan.status.phase is Phase.RUNNING
    assert plan.status.is_true("Running")
    assert plan.status.gang is not None
    assert (plan.status.gang.summary, plan.status.gang.running) == ("2 of 2 running", at(0))
    assert [event.reason for event in plan.events] == ["Running"]


def test_a_first_gang_is_told_in_one_event_each() -> None:
    plan = decide(observe(job(), *PODS, catalog=committed(10, before=claimed())))
    assert [(event.reason, event.key) for event in plan.events] == [
        ("GangCreated", "1"),
        ("Running", "1"),
        ("CheckpointCommitted", "1"),
    ]
    later = decide(observe(job(plan.status.dump()), *PODS, catalog=committed(10, 20, 30)))
    assert later.events == (), "a commit each step would be a storm"


def test_a_rendezvous_service_that_was_deleted_is_put_back() -> None:
    status, _ = settled(catalog=committed(30))
    plan = decide(observe(job(status), *PODS, catalog=committed(30), services=()))
    assert [type(action) for action in plan.actions] == [EnsureService]


def test_storage_that_goes_away_under_a_running_gang_is_only_told() -> None:
    status, _ = settled(catalog=committed(30), heartbeat=beat(36))
    down = Stored(problem=Problem(ProblemKind.UNAVAILABLE, "StorageUnavailable", "no answer"))
    plan = decide(observe(job(status), *PODS, stored=down, services=(service(),), now=at(1)))
    assert (plan.status.phase, plan.actions) == (Phase.RUNNING, ())
    assert plan.status.last_checkpoint is not None
    assert [event.reason for event in plan.events] == ["StorageUnavailable"]
    back = decide(observe(job(plan.status.dump()), *PODS, catalog=committed(30), heartbeat=beat(36), now=at(9)))
    assert back.status.is_true("StorageReady")


def test_saves_that_fail_are_told_until_one_stands() -> None:
    """The operator's own requests are answered all the while."""
    status, _ = settled(catalog=committed(30), heartbeat=beat(36))
    error = "step 40: AccessDenied: PutObject"
    failing = beat(41, saves_failed=1, saves_failed_in_a_row=1, last_save_error=error)
    plan = decide(observe(job(status), *PODS, catalog=committed(30), heartbeat=failing, now=at(1)))
    condition = plan.status.condition("StorageReady")
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "SavesFail")
    assert condition.message == f"the last save has failed, and training goes on without: {error}"
    assert [(event.type, event.reason) for event in plan.events] == [("Warning", "SavesFail")]
    more = beat(51, saves_failed=2, saves_failed_in_a_row=2, last_save_error=error)
    again = decide(observe(job(plan.status.dump()), *PODS, catalog=committed(30), heartbeat=more, now=at(60)))
    assert (again.status.phase, again.actions, again.events) == (Phase.RUNNING, (), ())
    assert "the last 2 saves have failed" in str(again.status.condition("StorageReady"))
    stopped = decide(observe(job(again.status.dump(), suspend=True), catalog=committed(30), heartbeat=more, now=at(61)))
    assert stopped.status.is_true("StorageReady"), "nobody saves any more"
    over = beat(61, saves_failed=2, last_save_error=error)
    back = decide(observe(job(again.status.dump()), *PODS, catalog=committed(30, 60), heartbeat=over, now=at(120)))
    assert back.status.is_true("StorageReady")


def test_a_removal_that_fails_again_and_again_writes_once() -> None:
    catalog = committed(10, 20, 30, 40)
    of: dict[str, Any] = {"checkpoint__keepLast": 2}
    refused = Results(problem=Problem(ProblemKind.REFUSED, "StorageRefused", "no DeleteObject"))
    first = decide(observe(job(running(), **of), *PODS, catalog=catalog, results=refused)).status
    for results in (Results(), refused):
        plan = decide(observe(job(first.dump(), **of), *PODS, catalog=catalog, results=results, now=at(60)))
        assert plan.status == first


@pytest.mark.parametrize("phase", ["Running", "Succeeded"])
def test_a_removal_that_fails_beside_the_passes_is_told(phase: str) -> None:
    of: dict[str, Any] = {"checkpoint__keepLast": 2}
    status = running({"phase": phase, **({"history": [{"attempt": 1}]} if phase == "Succeeded" else {})})
    refused = Results(deletion=Problem(ProblemKind.REFUSED, "StorageRefused", "no DeleteObject"))
    first = decide(observe(job(status, **of), catalog=committed(10, 20, 30, 40), results=refused, pods=PODS)).status
    condition = first.condition("StorageReady")
    assert condition is not None
    assert (condition.status, condition.message) == ("False", "no DeleteObject")
    for results in (Results(), refused):  # another process has not tried yet
        seen: dict[str, Any] = {"catalog": committed(10, 20, 30, 40), "results": results, "now": at(60), "pods": PODS}
        assert decide(observe(job(first.dump(), **of), **seen)).status == first
    done = decide(observe(job(first.dump(), **of), catalog=committed(30, 40), now=at(60), pods=PODS))
    assert done.status.is_true("StorageReady")


def test_the_deadline_is_looked_at_in_time() -> None:
    of = job(running(), activeDeadlineSeconds=3602)
    assert decide(observe(of, *PODS, catalog=committed(30))).requeue_after == 2


@pytest.mark.parametrize(
    ("change", "marks"),
    [
        ({"labelled": False}, [False]),
        ({"owned": False}, [True]),
        ({"labelled": False, "deleting": True}, []),
        ({"labelled": False, "phase": "Succeeded"}, []),
    ],
)
def test_a_pod_that_lost_its_labels_gets_them_back_and_goes_on(change: dict[str, Any], marks: list[bool]) -> None:
    plan = decide(observe(job(running()), replace(pod(0), **change), pod(1), catalog=committed(30)))
    found = [action for action in plan.actions if isinstance(action, MarkPod)]
    assert ([action.owner for action in found], plan.status.history) == (marks, [])
    labels = {names.JOB: "job", names.JOB_UID: "uid-1", names.ATTEMPT: "1", names.INDEX: "0"}
    assert all((action.name, action.labels) == ("job-1-0", labels) for action in found)


@pytest.mark.parametrize("of", [{"suspend": True}, {"activeDeadlineSeconds": 1}, {}])
def test_an_attempt_does_not_end_before_all_of_its_pods_can_be_found(of: dict[str, Any]) -> None:
    """Once the end is recorded no pod is looked for by name: one whose deletion fails would run on, nobody's."""
    pods = (crashed(1) if not of else pod(1), replace(pod(0), labelled=False))
    seen = observe(job(running(), **of), *pods, catalog=committed(30))
    for found in (None, Problem(ProblemKind.CLUSTER, "ApiServerUnavailable", "no answer")):
        plan = decide(replace(seen, results=Results(problem=found)))
        assert (plan.status.history, [type(action) for action in plan.actions]) == ([], [MarkPod])
        assert plan.again
    refused = Problem(ProblemKind.POD_REFUSED, "PodLabelsTaken", "a webhook takes them away")
    plan = decide(replace(seen, results=Results(problem=refused)))
    assert len(plan.status.history) == 1, "it does not wait for what is never granted"
    assert "job-1-0" in [action.name for action in plan.actions if isinstance(action, DeletePod)]


@pytest.mark.parametrize("other", [pod(1), crashed(1)])
def test_labels_that_the_cluster_does_not_take_are_told(other: PodView) -> None:
    seen = observe(job(running()), replace(pod(0), labelled=False), other, catalog=committed(30), heartbeat=beat(36))
    away = Results(problem=Problem(ProblemKind.CLUSTER, "ApiServerUnavailable", "no answer"))
    plan = decide(replace(seen, results=away))
    condition = plan.status.condition("Running")
    assert condition is not None
    assert condition.reason == "ApiServerUnavailable"
    assert all(word in condition.message for word in ("job-1-0", "no answer"))
    assert plan.status.last_checkpoint is not None, "what is seen meanwhile is told, too"
    assert (plan.again, plan.requeue_after) == (True, 2)
    tried = replace(seen, job=job(plan.status.dump()))
    for again in (tried, replace(tried, results=away, now=at(5))):
        assert decide(again).status == plan.status, "trying again is no news"


def test_a_finalizer_that_the_cluster_does_not_take_is_told_and_holds_no_recovery_up() -> None:
    status, _ = settled(catalog=committed(30), heartbeat=beat(36))
    of = job(status, deletionPolicy="Delete")
    away = Results(problem=Problem(ProblemKind.CLUSTER, "ApiServerUnavailable", "no answer"))
    plan = decide(observe(of, *PODS, catalog=committed(30), heartbeat=beat(36), results=away))
    condition = plan.status.condition("Running")
    assert condition is not None
    assert (condition.status, condition.message) == ("True", "all pods run; no answer")
    assert plan.actions == (AddFinalizer(names.FINALIZER),)
    failed = decide(observe(of, pod(0), crashed(1), catalog=committed(30), heartbeat=beat(36)))
    assert type(failed.actions[0]).__name__ == "Fence"
    assert failed.actions[-1] == AddFinalizer(names.FINALIZER)
