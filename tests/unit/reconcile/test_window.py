"""Counted restarts within windowSeconds, as they are held against maxRestarts."""

from __future__ import annotations

from typing import Any

import pytest

from everstep_operator.api.failure import FailurePolicy
from everstep_operator.api.status import Restarts
from everstep_operator.reconcile import decide, window
from tests.support.observations import NOW, at, committed, crashed, job, observe, pod, running

HOUR = FailurePolicy.model_validate({"windowSeconds": 3600})
TWO = Restarts(counted=9, recent=[at(-3600), at(-3599)])


def test_only_those_within_it_count() -> None:
    assert window.used(HOUR, TWO, NOW) == 1
    assert window.used(FailurePolicy(), TWO, NOW) == 9


@pytest.mark.parametrize(
    ("policy", "counted", "expected"),
    [(HOUR, True, [at(-3599), NOW]), (HOUR, False, [at(-3599)]), (FailurePolicy(), True, [])],
)
def test_what_is_remembered(policy: FailurePolicy, counted: bool, expected: list[Any]) -> None:
    assert window.record(policy, TWO, NOW, counted) == expected


@pytest.mark.parametrize(("age", "phase"), [(3599, "Failed"), (3600, "Restarting")])
def test_restarts_of_long_ago_are_forgiven(age: float, phase: str) -> None:
    restarts = {"total": 1, "counted": 1, "recent": [at(-age).isoformat()]}
    of = job(running({"restarts": restarts}), failurePolicy__maxRestarts=1, failurePolicy__windowSeconds=3600)
    plan = decide(observe(of, pod(0), crashed(1), catalog=committed(10)))
    assert plan.status.phase == phase
    if phase == "Failed":
        failed = plan.status.condition("Failed")
        assert failed is not None
        assert failed.message.startswith("maxRestarts 1 within 3600 s is used up")
