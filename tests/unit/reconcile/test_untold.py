"""A process that died between its status and its events: the next one tells what the status says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from everstep_operator.api.status import Condition, ConditionType
from everstep_operator.reconcile import decide
from everstep_operator.reconcile.events import RECENT, untold
from everstep_operator.reconcile.observation import ContainerView, Observation, Results
from tests.support.observations import (
    at,
    beat,
    claimed,
    committed,
    crashed,
    ended,
    fenced,
    job,
    observe,
    pod,
    running,
    succeeded,
)
from tests.unit.reconcile.test_starting import NO_IMAGE

CREATED = tuple(pod(index, created=at(0), container=ContainerView()) for index in (0, 1))
RUNNING = tuple(pod(index, container=ContainerView(running_since=at(-1))) for index in (0, 1))
STARTING: dict[str, Any] = {"phase": "Starting", "gang": {"nodes": 2, "started": at(-3).isoformat()}}

DAMAGED = committed(10, 20, 30)
DAMAGED = DAMAGED.model_copy(
    update={
        "checkpoints": tuple(
            entry if entry.step == 10 else entry.model_copy(update={"state": "quarantined"})
            for entry in DAMAGED.checkpoints
        )
    }
)

WRITES = [
    pytest.param(observe(job(), *CREATED, catalog=fenced()), ["GangCreated"], id="created"),
    pytest.param(
        observe(job(ended()), *(replace(each, attempt=2) for each in CREATED), catalog=fenced(2, fenced())),
        ["GangCreated"],
        id="created again",
    ),
    pytest.param(
        observe(job(running(STARTING)), CREATED[0], NO_IMAGE, catalog=fenced()), ["ImagePullBackOff"], id="waits"
    ),
    pytest.param(observe(job(running(STARTING)), *RUNNING, catalog=fenced()), ["Running"], id="runs"),
    pytest.param(observe(job(running()), pod(0), crashed(1), catalog=committed(30)), ["GangFailed"], id="failed"),
    pytest.param(
        observe(job(running(), failurePolicy__maxRestarts=0), pod(0), crashed(1), catalog=committed(30)),
        ["GangFailed", "Failed"],
        id="failed for good",
    ),
    pytest.param(observe(job(running()), succeeded(0), succeeded(1), catalog=committed(30)), ["Succeeded"], id="done"),
    pytest.param(
        observe(job(running(), suspend=True), pod(0), pod(1), catalog=committed(30)), ["Suspended"], id="rests"
    ),
    pytest.param(
        observe(
            job(running({"restarts": {"inPlace": 2}})),
            *(pod(0), pod(1)),
            catalog=claimed(1, committed(30), "again"),
            results=Results(logs={"job-1-0": "", "job-1-1": ""}),
        ),
        ["RestartedInPlace"],
        id="restarted in place",
    ),
    pytest.param(
        observe(job(running({"checkpoints": {"count": 2, "quarantined": 1}})), pod(0), pod(1), catalog=DAMAGED),
        ["CheckpointQuarantined"],
        id="quarantined",
    ),
    pytest.param(
        observe(
            job(running(), {"annotations": {"everstep.dev/checkpoint-now": "monday"}}),
            *(pod(0), pod(1)),
            catalog=committed(30),
            heartbeat=beat(30, request="monday", request_step=30),
        ),
        ["CheckpointSaved"],
        id="saved",
    ),
]


@pytest.mark.parametrize(("seen", "reasons"), WRITES)
def test_what_a_write_would_have_told_is_told_by_the_next_process(seen: Observation, reasons: list[str]) -> None:
    plan = decide(seen)
    assert set(reasons) <= {event.reason for event in plan.events}
    again = {(event.reason, event.key, event.message) for event in untold(plan.status, at(200))}
    assert {(event.reason, event.key, event.message) for event in plan.events if event.reason in reasons} <= again
    assert untold(plan.status, at(1) + RECENT) == (), "it was told, and may be forgotten by now"


def test_a_save_and_a_restart_of_a_former_attempt_are_not_told_under_the_name_of_the_present_one() -> None:
    told = {"restarts": {"inPlace": 1, "lastTime": at(-9).isoformat()}}
    told["requests"] = {"checkpointSaved": "monday", "checkpointSavedTime": at(-9).isoformat()}
    told["checkpoints"] = {"count": 1, "quarantined": 1, "quarantinedTime": at(-9).isoformat()}
    before = job(running(told)).status
    reasons = {"RestartedInPlace", "CheckpointSaved", "CheckpointQuarantined"}
    assert reasons <= {event.reason for event in untold(before, at(0))}
    assert before.gang is not None
    anew = before.model_copy(update={"gang": before.gang.model_copy(update={"started": at(-5)})})
    assert not reasons & {event.reason for event in untold(anew, at(0))}
    failed = before.model_copy(update={"gang": None})
    assert "RestartedInPlace" not in {event.reason for event in untold(failed, at(0))}, "the last one was of all pods"


def test_of_a_former_attempt_nothing_is_told_again() -> None:
    """Its events have other names: they would stand there twice."""
    failed = decide(observe(job(running()), pod(0), crashed(1), catalog=committed(30))).status
    went_on = failed.model_copy(update={"attempt": 2})
    assert "GangFailed" not in {event.reason for event in untold(went_on, at(5))}


def test_a_condition_of_a_former_attempt_is_not_told_under_the_name_of_the_present_one() -> None:
    status = decide(observe(job(running()), pod(0), pod(1), catalog=committed(30))).status
    refusal = Condition(
        type=ConditionType.STORAGE_READY,
        status="False",
        reason="AccessDenied",
        message="no",
        last_transition_time=at(3),
    )
    assert status.gang is not None
    told = status.model_copy(update={"conditions": [refusal]})
    assert "AccessDenied" in {event.reason for event in untold(told, at(5))}
    anew = told.model_copy(update={"gang": status.gang.model_copy(update={"started": at(4)})})
    assert "AccessDenied" not in {event.reason for event in untold(anew, at(5))}
