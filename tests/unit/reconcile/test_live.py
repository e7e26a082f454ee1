"""A live field is acted on by the first decision after its edit, with the gang that runs and without a new one for it.

Each row is a job in a situation that the field decides about: with the former value one thing is done about it, with
the edited value, and nothing else changed, another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from everstep_operator.api.fields import changing
from everstep_operator.build.names import FINALIZER
from everstep_operator.reconcile import decide
from everstep_operator.reconcile.observation import Observation, PodView
from everstep_operator.reconcile.plan import AddFinalizer, DeleteJob, Plan, Retire
from tests.support.observations import at, beat, claimed, committed, crashed, fenced, job, observe, pod, running
from tests.unit.reconcile.test_edits import built
from tests.unit.reconcile.test_elastic import gang

GANG = (pod(0), pod(1))
BROKEN = (pod(0), crashed(1))
NAMES = {"onReasons": ["RuntimeError"]}


@dataclass(frozen=True)
class Row:
    """`told` is what a plan says about it; `before` and `after`: with the former and the edited value."""

    old: Any
    new: Any
    told: Callable[[Plan], Any]
    before: Any
    after: Any
    pods: tuple[PodView, ...] = GANG
    status: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    observed: dict[str, Any] = field(default_factory=lambda: {"catalog": committed(10, 20, 30, 40, score=1.0)})

    def observe(self, path: str, value: Any) -> Observation:
        """The pods are those of the former value."""
        name = path.replace(".", "__")
        former, present = (job(running(self.status), **self.spec, **{name: each}) for each in (self.old, value))
        return observe(present, *built(former, *self.pods), **self.observed)


def phase(plan: Plan) -> str | None:
    return plan.status.phase


def end(plan: Plan) -> str | None:
    return plan.status.history[-1].reason if plan.status.history else None


def wait(plan: Plan) -> bool:
    """Whether the next attempt waits for more than ten seconds."""
    restarts = plan.status.restarts
    assert restarts is not None
    assert restarts.next_time is not None
    return (restarts.next_time - at(0)).total_seconds() > 10


def retired(plan: Plan) -> Any:
    return next((action.policy for action in plan.actions if isinstance(action, Retire)), None)


def keeps(name: str) -> Callable[[Plan], Any]:
    """A part of the policy by which checkpoints are about to be removed."""
    return lambda plan: (found := retired(plan)) and getattr(found, name)


def best(name: str) -> Callable[[Plan], Any]:
    return lambda plan: (found := retired(plan)) and found.best and getattr(found.best, name)


def limit(phase_: str) -> Row:
    shown: dict[str, Any] = {"phase": phase_}
    if phase_ == "compiling":
        shown = {"phase": "training", "first_step": None}
    seen = beat(7, still=100.0, phase_since=at(-100), **shown)
    observed = {"catalog": claimed(), "heartbeat": seen}
    return Row(1000, 50, end, None, "Stalled", observed=observed)


IDLE = {"catalog": claimed()}
STARTING: dict[str, Any] = {
    "status": {"phase": "Starting", "gang": {"nodes": 2, "started": at(-100).isoformat()}},
    "observed": {"catalog": fenced()},
}
DONE = {"phase": "Succeeded", "completionTime": at(-60).isoformat(), "history": [{"attempt": 1, "reason": "Completed"}]}
RECENT = {"restarts": {"total": 1, "counted": 1, "recent": [at(-100).isoformat()]}}
TWO_NODES = {"checkpoint__keepLast": 2}

ROWS: dict[str, Row] = {
    "elastic.minNodes": Row(
        2,
        1,
        lambda plan: plan.status.history[0].next_nodes,
        None,
        1,
        pods=gang(1, nodes=2),
        spec={"elastic__maxNodes": 2, "failurePolicy__startTimeoutSeconds": 50},
        **STARTING,
    ),
    "suspend": Row(False, True, end, None, "Suspended"),
    "checkpoint.keepLast": Row(4, 3, keeps("last"), None, 3),
    "checkpoint.keepBest.count": Row(
        2, 1, best("count"), 2, 1, spec={**TWO_NODES, "checkpoint__keepBest__metric": "score"}
    ),
    "checkpoint.keepBest.mode": Row(
        "min", "max", best("mode"), "min", "max", spec={**TWO_NODES, "checkpoint__keepBest__metric": "score"}
    ),
    "checkpoint.keepEvery": Row(10, 20, keeps("every"), None, 20, spec=TWO_NODES),
    "failurePolicy.maxRestarts": Row(
        10, 1, phase, "Restarting", "Failed", BROKEN, {"restarts": {"total": 1, "counted": 1}}
    ),
    "failurePolicy.windowSeconds": Row(
        50, 500, phase, "Restarting", "Failed", BROKEN, RECENT, {"failurePolicy__maxRestarts": 1}
    ),
    "failurePolicy.maxRestartsWithoutProgress": Row(3, 1, phase, "Restarting", "Failed", BROKEN, observed=IDLE),
    "failurePolicy.stallTimeoutSeconds": Row(
        600, 50, end, None, "Stalled", observed={"catalog": claimed(), "heartbeat": beat(7, still=100.0)}
    ),
    **{
        f"failurePolicy.phaseTimeoutSeconds.{name}": limit(name)
        for name in ("starting", "restoring", "compiling", "saving", "evaluating", "finished")
    },
    "failurePolicy.startTimeoutSeconds": Row(1200, 50, end, None, "StartTimeout", gang(1, nodes=2), **STARTING),
    "failurePolicy.backoff.initialSeconds": Row(5, 200, wait, False, True, BROKEN, observed=IDLE),
    "failurePolicy.backoff.maxSeconds": Row(
        300,
        6,
        wait,
        True,
        False,
        BROKEN,
        {"restarts": {"withoutProgress": 3}},
        {"failurePolicy__maxRestartsWithoutProgress": 9},
        observed=IDLE,
    ),
    "failurePolicy.rules": Row(
        [], [{"name": "r", "action": "FailJob", **NAMES}], phase, "Restarting", "Failed", BROKEN
    ),
    "activeDeadlineSeconds": Row(7200, 60, end, None, "DeadlineExceeded"),
    "ttlSecondsAfterFinished": Row(
        3600,
        30,
        lambda plan: any(isinstance(action, DeleteJob) for action in plan.actions),
        *(False, True, (), DONE),
        observed={"catalog": committed(10, 20)},  # nothing to remove, which it would wait for
    ),
    "deletionPolicy": Row("Retain", "Delete", lambda plan: AddFinalizer(FINALIZER) in plan.actions, False, True),
}
BY_THE_API_SERVER = {"elastic.maxNodes"}
"""It bounds `nodes`, and nothing else."""


def test_every_live_field_has_a_row() -> None:
    assert set(ROWS) == set(changing("live")) - BY_THE_API_SERVER


@pytest.mark.parametrize("path", ROWS)
def test_an_edit_is_acted_on_at_once(path: str) -> None:
    row = ROWS[path]
    assert row.told(decide(row.observe(path, row.old))) == row.before, "with the former value"
    assert row.told(decide(row.observe(path, row.new))) == row.after, "with the edited one"
