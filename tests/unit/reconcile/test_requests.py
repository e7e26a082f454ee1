"""restart-now and checkpoint-now: once a value, acknowledged in the status."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from everstep_operator.api import Phase
from everstep_operator.reconcile import decide
from everstep_operator.reconcile.observation import HeartbeatView, Observation, Problem, ProblemKind, Results, Stored
from everstep_operator.reconcile.plan import AskForSave, DeletePod, Fence, Plan
from tests.support.observations import (
    NOW,
    at,
    beat,
    claimed,
    committed,
    ended,
    fenced,
    job,
    observe,
    pod,
    running,
    succeeded,
)

RESTART = "everstep.dev/restart-now"
CHECKPOINT = "everstep.dev/checkpoint-now"
PODS = (pod(0), pod(1))


def annotated(status: dict[str, Any], value: str = "1", **spec: Any) -> Any:
    return job(status, {"annotations": {RESTART: value}}, **spec)


def acknowledged(plan: Plan) -> str | None:
    return plan.status.requests.restart if plan.status.requests else None


def running_gang(status: dict[str, Any] | None = None, **changes: Any) -> Observation:
    of = annotated(running(status))
    return observe(of, *PODS, **{"catalog": committed(10), "heartbeat": beat(12), **changes})


def test_a_restart_saves_first_and_is_not_counted() -> None:
    plan = decide(running_gang())
    (entry,) = plan.status.history
    assert (entry.reason, acknowledged(plan)) == ("RestartRequested", "1")
    assert plan.actions == tuple(DeletePod(each.name, each.uid, None) for each in PODS), "their own grace, no fence yet"
    assert ("Normal", "RestartRequested") in [(event.type, event.reason) for event in plan.events]
    saved = observe(annotated(plan.status.dump()), catalog=committed(10, 13))
    results = replace(saved.results, dry_run=True, probed=True)
    after = decide(replace(saved, results=results))
    assert [type(action) for action in after.actions] == [Fence]
    assert after.status.restarts is not None
    assert (after.status.restarts.total, after.status.restarts.next_time) == (0, None)


def test_a_value_is_acted_on_once() -> None:
    status = running({"requests": {"restart": "1"}}, 2)
    again = observe(
        annotated(status), pod(0, 2), pod(1, 2), catalog=committed(10, before=claimed(2)), heartbeat=beat(12, 2)
    )
    assert decide(again).status.history == []
    other = decide(replace(again, job=annotated(status, "2")))
    assert (other.status.history[0].attempt, acknowledged(other)) == (2, "2")


@pytest.mark.parametrize(
    "observation",
    [
        pytest.param(observe(annotated({})), id="before the first attempt"),
        pytest.param(observe(annotated(ended(reason="Suspended"), suspend=True), catalog=fenced()), id="suspended"),
        pytest.param(
            observe(annotated({"phase": "Succeeded", "attempt": 1, "completionTime": "2026-01-01T11:00:00Z"})),
            id="finished",
        ),
    ],
)
def test_where_no_gang_runs_there_is_nothing_to_restart(observation: Observation) -> None:
    plan = decide(observation)
    assert acknowledged(plan) == "1"
    assert not [action for action in plan.actions if isinstance(action, DeletePod)]
    assert {entry.reason for entry in plan.status.history} <= {"Suspended"}


@pytest.mark.parametrize(
    ("pods", "found", "restarts"),
    [
        pytest.param((pod(0), pod(1)), beat(30, phase="finished", still=5), False, id="it ends just now"),
        pytest.param((pod(0), pod(1)), beat(30, phase="finished", still=40), True, id="its end hangs"),
        pytest.param((succeeded(0), pod(1)), beat(30), False, id="a pod has just succeeded"),
        pytest.param((succeeded(0), pod(1)), beat(30), True, id="the other one hangs"),
    ],
)
def test_a_gang_that_hangs_at_its_end_can_be_restarted(pods: Any, found: HeartbeatView, restarts: bool) -> None:
    now = at(60) if restarts and pods[0].terminal else at(0)
    plan = decide(observe(annotated(running()), *pods, catalog=committed(30), heartbeat=found, now=now))
    assert [entry.reason for entry in plan.status.history] == (["RestartRequested"] if restarts else [])


def test_it_ends_a_back_off() -> None:
    status = ended(restarts={"total": 1, "withoutProgress": 3, "nextTime": at(200).isoformat()})
    plan = decide(observe(annotated(status), catalog=fenced(2)))
    assert acknowledged(plan) == "1"
    assert plan.status.restarts is not None
    assert plan.status.restarts.next_time is None
    assert plan.actions, "the pods come now"


def test_a_gang_that_could_not_save_goes_on_until_it_can() -> None:
    problem = Problem(ProblemKind.UNAVAILABLE, "StorageUnavailable", "no answer")
    observation = running_gang(stored=Stored(committed(10), beat(12), problem, swept_age=1.0))
    plan = decide(observation)
    assert (plan.status.phase, plan.status.history, acknowledged(plan)) == (Phase.RUNNING, [], None)


def test_a_very_long_value_is_remembered_by_its_digest() -> None:
    of = job(running(), {"annotations": {RESTART: "x" * 5000}})
    plan = decide(observe(of, *PODS, catalog=committed(10), heartbeat=beat(12)))
    assert (acknowledged(plan) or "").startswith("sha256:")
    again = job({**plan.status.dump()}, {"annotations": {RESTART: "x" * 5000}})
    assert acknowledged(decide(observe(again, catalog=committed(10)))) == acknowledged(plan)


def checkpoint(found: HeartbeatView | None, status: dict[str, Any] | None = None, **changes: Any) -> Observation:
    of = job(running(status), {"annotations": {CHECKPOINT: "monday"}})
    return observe(of, *PODS, **{"catalog": committed(10), "heartbeat": found, **changes})


def told(plan: Plan) -> dict[str, Any]:
    return plan.status.requests.model_dump(exclude_none=True) if plan.status.requests else {}


def test_a_checkpoint_is_asked_for_until_the_workers_know_of_it_and_told_when_it_stands() -> None:
    plan = decide(checkpoint(beat(12)))
    assert (plan.actions, plan.again, told(plan)) == ((AskForSave(1, "monday"),), True, {})
    passed_on = {"checkpoint": "monday", "attempt": 1}
    plan = decide(checkpoint(beat(12), results=Results(asked="monday")))
    assert (plan.actions, plan.again, told(plan)) == ((), False, passed_on)
    plan = decide(checkpoint(beat(13), {"requests": passed_on}))
    assert (plan.actions, told(plan)) == ((), passed_on)
    plan = decide(checkpoint(beat(14, request="monday", request_step=14), {"requests": passed_on}))
    assert (plan.actions, told(plan)) == ((), passed_on), "its save has begun"
    known = beat(15, request="monday", request_step=14)
    plan = decide(checkpoint(known, {"requests": passed_on}, catalog=committed(10, 14)))
    saved = {"checkpoint_saved": "monday", "checkpoint_saved_time": NOW}
    assert told(plan) == {"checkpoint": "monday", "attempt": 1, **saved}
    assert ("CheckpointSaved", "monday") in [(event.reason, event.key) for event in plan.events]
    done = decide(checkpoint(known, plan.status.dump(), catalog=committed(10, 14)))
    assert (done.actions, [event.reason for event in done.events]) == ((), [])


def test_the_workers_of_another_attempt_are_asked_anew() -> None:
    status = running({"requests": {"checkpoint": "monday", "attempt": 1}}, 2)
    of = job(status, {"annotations": {CHECKPOINT: "monday"}})
    pods = (pod(0, 2), pod(1, 2))
    catalog = committed(10, before=claimed(2))
    assert decide(observe(of, *pods, catalog=catalog)).actions == (), "not before they beat"
    plan = decide(observe(of, *pods, catalog=catalog, heartbeat=beat(12, 2)))
    assert plan.actions == (AskForSave(2, "monday"),)


@pytest.mark.parametrize("phase", ["finished", "failed"])
def test_workers_that_are_done_are_not_asked(phase: str) -> None:
    assert decide(checkpoint(beat(12, phase=phase))).actions == ()


def test_a_request_that_cannot_be_written_is_not_tried_again_in_the_same_pass() -> None:
    problem = Problem(ProblemKind.UNAVAILABLE, "StorageUnavailable", "no answer")
    plan = decide(checkpoint(beat(12), results=Results(problem=problem)))
    assert (plan.actions, plan.again, told(plan)) == ((), False, {})


def test_a_request_that_is_refused_pass_after_pass_writes_once() -> None:
    """Storage may answer every read and take no write, such as a disk that is full."""
    refused = Results(problem=Problem(ProblemKind.UNAVAILABLE, "StorageUnavailable", "no room"))
    first = decide(checkpoint(beat(12), results=refused)).status
    assert not first.is_true("StorageReady")
    for results in (Results(), refused):
        plan = decide(checkpoint(beat(12), first.dump(), results=results, now=at(60)))
        assert (plan.status, plan.events) == (first, ())


def test_a_suspended_job_has_saved_already() -> None:
    of = job(ended(reason="Suspended", phase="Suspended"), {"annotations": {CHECKPOINT: "monday"}}, suspend=True)
    assert told(decide(observe(of, catalog=fenced())))["checkpoint_saved"] == "monday"
