"""restart-now and checkpoint-now: once a value, acknowledged in the status."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from everstep_operator.api import Phase
from everstep_operator.reconcile import decide
from everstep_operator.reconcile.observation import Observation, Problem, ProblemKind, Stored
from everstep_operator.reconcile.plan import DeletePod, Fence, Plan
from tests.support.observations import at, beat, claimed, committed, ended, fenced, job, observe, pod, running

RESTART = "everstep.dev/restart-now"
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
