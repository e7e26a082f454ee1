"""The seconds of a recovery by phase, the lost steps and the goodput."""

from __future__ import annotations

from typing import Any

from everstep_operator.reconcile import decide
from everstep_operator.reconcile.observation import ConditionView, ContainerView
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
