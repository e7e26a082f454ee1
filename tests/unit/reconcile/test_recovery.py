"""The seconds of a recovery by phase, the lost steps and the goodput."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from everstep.failure import encode_mark
from everstep_operator.api.common import MAX_STEP
from everstep_operator.reconcile import decide
from everstep_operator.reconcile.observation import ConditionView, ContainerView, PodView, Results
from everstep_operator.reconcile.plan import ReadLogs
from tests.support.observations import (
    at,
    beat,
    claimed,
    committed,
    crashed,
    failed,
    fenced,
    job,
    observe,
    pod,
    record,
    running,
)


def launched(index: int, running_since: float | None) -> Any:
    bound = (ConditionView("PodScheduled", "True", since=at(3)),)
    container = ContainerView(running_since=None if running_since is None else at(running_since))
    phase = "Pending" if running_since is None else "Running"
    resume = {**pod(index, 2).annotations, "everstep.dev/resume-step": "30", "everstep.dev/resume-path": "s3://b/x"}
    return pod(index, 2, phase=phase, created=at(2), container=container, conditions=bound, annotations=resume)


def test_a_recovery_from_fault_to_first_new_step() -> None:
    crash = failed(1, message=record(rank=1, exit_code=1, exception="E", step=37, time=at(-0.9).isoformat()))
    status = decide(observe(job(running()), pod(0), crash, catalog=committed(30), heartbeat=beat(36))).status
    catalog = fenced(2, committed(30))

    def go_on(seconds: float, since: float | None, **changes: Any) -> None:
        nonlocal status
        pods = (launched(0, since), launched(1, since))
        status = decide(observe(job(status.dump()), *pods, catalog=catalog, now=at(seconds), **changes)).status

    go_on(2.2, None)
    assert status.recovery is not None
    assert status.recovery.seconds is not None
    assert status.recovery.seconds.dump() == {"detect": 0.9, "teardown": 2.2}
    assert status.recovery.lost_steps == 7
    go_on(4.5, 4.0)
    go_on(9.0, 4.0, heartbeat=beat(31, attempt=2, first_step=at(8.0)))
    assert status.recovery.seconds.dump() == {
        "detect": 0.9,
        "teardown": 2.2,
        "schedule": 0.8,
        "start": 1.5,
        "load": 3.5,
        "total": 8.9,
    }
    before = status
    go_on(60.0, 4.0, heartbeat=beat(31, attempt=2, first_step=at(8.0)))
    assert status.recovery == before.recovery, "measured once"


def test_what_was_lost_is_counted_from_the_register_where_it_is_newer_than_the_heartbeat() -> None:
    told = record(rank=1, exit_code=1, exception="E", message="m", step=35)
    dead = failed(1, message=told)
    plan = decide(observe(job(running()), pod(0), dead, catalog=committed(30, 40), heartbeat=beat(36)))
    assert plan.status.history[-1].to_step == 40
    former = committed(50, before=claimed(2, fenced(2, committed(40))))
    plan = decide(observe(job(running(attempt=2)), pod(0, 2), crashed(1, 2), catalog=former, heartbeat=None))
    assert plan.status.history[-1].to_step == 50
    nothing = claimed(2, fenced(2, committed(40)))
    plan = decide(observe(job(running(attempt=2)), pod(0, 2), crashed(1, 2), catalog=nothing))
    assert plan.status.history[-1].to_step is None, "what an earlier attempt committed says nothing of this one"


def marked(index: int, step: int, **changes: Any) -> PodView:
    """A pod that was killed where it stood: its mark is all that it leaves."""
    message = encode_mark(step).decode()
    return replace(failed(index, code=137, message=message), uid=f"pod-1-{index}", **changes)


def test_a_pod_that_outlives_the_attempt_tells_how_far_it_got() -> None:
    """Pod 1 was torn away, three steps after the last beat; pod 0 dies of its deletion."""
    status = decide(observe(job(running()), pod(0), catalog=committed(70), heartbeat=beat(75))).status
    assert status.history[-1].reason == "PodDeleted"
    assert status.history[-1].to_step == 75
    catalog = fenced(2, committed(70))
    dying = marked(0, 78, deleting=True)
    plan = decide(observe(job(status.dump()), dying, catalog=catalog, now=at(1.5)))
    assert plan.status.history[-1].to_step == 78
    assert [event.reason for event in plan.events] == []
    resume = {**pod(0, 2).annotations, "everstep.dev/resume-step": "70", "everstep.dev/resume-path": "s3://b/x"}
    pods = tuple(replace(pod(index, 2), created=at(2), annotations=resume) for index in (0, 1))
    status = decide(observe(job(plan.status.dump()), *pods, catalog=catalog, now=at(2))).status
    assert status.recovery is not None
    assert status.recovery.lost_steps == 8
    older = claimed(2, catalog).model_copy(update={"claim": None})
    again = decide(observe(job(status.dump()), *pods, catalog=older, now=at(3))).status
    assert again.history == status.history, "what is gone is remembered"


def test_what_a_pod_told_that_went_before_anybody_looked_counts() -> None:
    """At the attempt's end, or later: a watch may tell of it when the next gang is there already."""
    status = decide(
        replace(observe(job(running()), pod(0), catalog=committed(70), heartbeat=beat(75)), parted={1: 78})
    ).status
    assert status.history[-1].to_step == 78
    plan = decide(replace(observe(job(status.dump()), catalog=fenced(2, committed(70)), now=at(1)), parted={1: 79}))
    assert plan.status.history[-1].to_step == 79


def test_a_container_that_is_killed_whole_tells_how_far_it_got() -> None:
    status = decide(observe(job(running()), marked(0, 78), pod(1), catalog=committed(70), heartbeat=beat(75))).status
    entry = status.history[-1]
    assert (entry.reason, entry.code, entry.to_step) == ("SIGKILL", -9, 78)
    assert "step" not in (entry.message or "")


def test_a_mark_hides_no_log() -> None:
    """With one the kubelet does not put the log's end in its place."""
    dead = replace(marked(1, 78), container=replace(marked(1, 78).container, exit_code=1))
    seen = observe(job(running()), pod(0), dead, catalog=committed(70))
    plan = decide(seen)
    assert plan.actions == (ReadLogs(("job-1-1",)),)
    log = "Traceback (most recent call last):\n  File \"train.py\"\nKeyError: 'lr'\n"
    entry = decide(replace(seen, results=Results(logs={"job-1-1": log}))).status.history[-1]
    assert (entry.reason, entry.message, entry.to_step) == (
        "KeyError",
        "pod 1 (job-1-1) on node-b failed: KeyError: 'lr'",
        78,
    )
    entry = decide(replace(seen, results=Results(logs={"job-1-1": ""}))).status.history[-1]
    assert entry.message == "pod 1 (job-1-1) on node-b exited with code 1"


def test_what_pods_tell_after_the_jobs_end_is_kept_too() -> None:
    of = job(running(), failurePolicy__maxRestarts=0)
    status = decide(observe(of, pod(0), crashed(1), catalog=committed(70), heartbeat=beat(75))).status
    assert (status.phase, status.history[-1].to_step) == ("Failed", 75)
    later = decide(observe(job(status.dump()), marked(0, 78), crashed(1), catalog=committed(70), heartbeat=beat(75)))
    assert later.status.history[-1].to_step == 78


def test_a_mark_beyond_all_bounds_is_no_step_of_a_status() -> None:
    wild = replace(marked(0, 0), container=replace(marked(0, 0).container, message='{"step": 999999999999999}'))
    assert decide(observe(job(running()), wild, pod(1), catalog=committed(70))).status.history[-1].to_step == MAX_STEP


def test_what_is_lost_grows_where_the_claim_falls_back_to_an_older_checkpoint() -> None:
    recovery = {"detected": at(0).isoformat(), "attempt": 1, "seconds": {"teardown": 2.0}, "lostSteps": 8}
    history = [{"attempt": 1, "reason": "PodDeleted", "toStep": 78}]
    before = committed(60, 70)
    aside = [e.model_copy(update={"state": "quarantined"}) if e.step == 70 else e for e in before.checkpoints]
    catalog = claimed(2, fenced(2, before.model_copy(update={"checkpoints": tuple(aside)})))
    state = running({"recovery": recovery, "history": history}, attempt=2)
    del state["fence"]["claimed"]
    status = decide(observe(job(state), pod(0, 2), pod(1, 2), catalog=catalog)).status
    assert status.resumed_from is not None
    assert status.resumed_from.step == 60
    assert status.recovery is not None
    assert status.recovery.lost_steps == 18


def test_a_suspension_ends_the_measurement() -> None:
    status = decide(observe(job(running()), pod(0), crashed(1), catalog=committed(30))).status
    resting = decide(observe(job(status.dump(), suspend=True), catalog=fenced(2, committed(30)))).status
    later = decide(
        observe(
            job(resting.dump()), launched(0, 990.0), launched(1, 990.0), catalog=fenced(2, committed(30)), now=at(999)
        )
    ).status
    assert later.recovery is not None
    assert later.recovery.seconds is None or later.recovery.seconds.teardown is None


def test_goodput_is_told_with_a_commit() -> None:
    pods = (pod(0), pod(1))
    found = beat(1805, seconds_per_step=1.8)
    first = decide(observe(job(running()), *pods, catalog=committed(1800), heartbeat=found)).status
    assert first.goodput == "90%"
    later = decide(observe(job(first.dump()), *pods, catalog=committed(1800), heartbeat=found, now=at(500))).status
    assert later.goodput == "90%", "it does not change by itself"
