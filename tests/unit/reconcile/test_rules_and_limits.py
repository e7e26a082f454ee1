"""Rules of the failure policy, the limits on restarts, and the wait between them."""

from __future__ import annotations

from typing import Any

import pytest

from everstep_operator.api.failure import Backoff, FailurePolicy
from everstep_operator.reconcile import backoff, limits, rules
from everstep_operator.reconcile.classify import Cause

KILLED = Cause(
    "SIGKILL",
    "killed",
    code=-9,
    reasons=frozenset({"SIGKILL", "Error"}),
    conditions=frozenset({("DisruptionTarget", "True")}),
)
MISFIT = Cause("InvalidOperationError", "wrong shapes", code=78)
FENCED = Cause("Fenced", "fenced", code=76)
ERROR = Cause("ValueError", "rank 0 failed: ValueError: no", code=1, reasons=frozenset({"ValueError", "Error"}))
CUDA = Cause("RuntimeError", "rank 3 on node-b failed: RuntimeError: CUDA error: device-side assert triggered", code=1)


def policy(*found: dict[str, Any], **fields: Any) -> FailurePolicy:
    named = [{"name": f"r{i}", "action": "FailJob", **rule} for i, rule in enumerate(found)]
    return FailurePolicy.model_validate({"rules": named, **fields})


@pytest.mark.parametrize(
    ("rule", "cause", "matches"),
    [
        ({"onExitCodes": {"operator": "In", "values": [137]}}, KILLED, True),
        ({"onExitCodes": {"operator": "In", "values": [9]}}, KILLED, False),
        ({"onExitCodes": {"operator": "In", "values": [78]}}, MISFIT, True),
        ({"onExitCodes": {"operator": "NotIn", "values": [78]}}, MISFIT, False),
        ({"onExitCodes": {"operator": "NotIn", "values": [1]}}, MISFIT, True),
        ({"onExitCodes": {"operator": "NotIn", "values": [1]}}, Cause("PodDeleted", "deleted"), False),
        ({"onReasons": ["OOMKilled", "Error"]}, KILLED, True),
        ({"onReasons": ["OOMKilled"]}, KILLED, False),
        ({"onPodConditions": [{"type": "DisruptionTarget"}]}, KILLED, True),
        ({"onPodConditions": [{"type": "DisruptionTarget", "status": "False"}]}, KILLED, False),
        ({"onMessages": ["no such", "KILL"]}, KILLED, True),
        ({"onMessages": ["no such"]}, KILLED, False),
        ({"onMessages": ["device-side assert"]}, CUDA, True),
        ({"onMessages": ["cuda error*assert"]}, CUDA, True),
        ({"onMessages": ["*rank 3*CUDA*"]}, CUDA, True),
        ({"onMessages": ["assert*CUDA"]}, CUDA, False),
        ({"onMessages": ["CUDA.*assert"]}, CUDA, False),
    ],
)
def test_rule(rule: dict[str, Any], cause: Cause, matches: bool) -> None:
    assert (rules.match(policy(rule), cause) is not None) is matches


def test_the_first_rule_that_matches_decides() -> None:
    both = policy({"onReasons": ["Error"], "action": "Restart"}, {"onReasons": ["SIGKILL"]})
    found = rules.match(both, KILLED)
    assert found is not None
    assert found.name == "r0"


@pytest.mark.parametrize(
    ("found", "used", "idle", "cause", "superseded", "verdict"),
    [
        pytest.param(policy(), 0, 1, ERROR, False, (True, None, None), id="counted"),
        pytest.param(policy(maxRestarts=2), 1, 0, ERROR, False, (True, None, None), id="the last one"),
        pytest.param(policy(maxRestarts=2), 2, 0, ERROR, False, (True, None, "RestartLimit"), id="used up"),
        pytest.param(policy(maxRestarts=0), 0, 0, ERROR, False, (True, None, "RestartLimit"), id="none allowed"),
        pytest.param(policy(), 0, 2, ERROR, False, (True, None, None), id="two attempts without progress"),
        pytest.param(policy(), 0, 3, ERROR, False, (True, None, "NoProgress"), id="three of them"),
        pytest.param(policy(maxRestarts=0), 9, 9, KILLED, False, (False, None, None), id="a disruption"),
        pytest.param(
            policy({"onPodConditions": [{"type": "DisruptionTarget"}], "action": "Restart"}, maxRestarts=0),
            0,
            0,
            KILLED,
            False,
            (True, "r0", "RestartLimit"),
            id="a disruption that a rule counts",
        ),
        pytest.param(policy({"onReasons": ["Error"]}), 0, 0, ERROR, False, (False, "r0", "FailJobRule"), id="FailJob"),
        pytest.param(
            policy({"onReasons": ["Error"], "action": "RestartUncounted"}, maxRestarts=0),
            0,
            9,
            ERROR,
            False,
            (False, "r0", None),
            id="uncounted, whatever the limits",
        ),
        pytest.param(
            policy({"onReasons": ["Error"], "action": "Restart"}, maxRestarts=0),
            0,
            0,
            ERROR,
            False,
            (True, "r0", "RestartLimit"),
            id="Restart is counted",
        ),
        pytest.param(policy(), 0, 0, MISFIT, False, (False, None, "NotRunnable"), id="cannot work"),
        pytest.param(
            policy({"onExitCodes": {"operator": "In", "values": [78]}, "action": "Restart"}),
            0,
            0,
            MISFIT,
            False,
            (True, "r0", None),
            id="a rule overrides what 78 means",
        ),
        pytest.param(policy(maxRestarts=0), 0, 0, FENCED, True, (False, None, None), id="fenced by its successor"),
        pytest.param(policy(maxRestarts=0), 0, 0, FENCED, False, (True, None, "RestartLimit"), id="fenced by nobody"),
    ],
)
def test_verdict(
    found: FailurePolicy, used: int, idle: int, cause: Cause, superseded: bool, verdict: tuple[Any, ...]
) -> None:
    judged = limits.judge(found, used, cause, idle, superseded)
    assert (judged.counted, judged.rule, judged.end) == verdict
    assert (judged.end is None) or cause.message in judged.message


@pytest.mark.parametrize(("idle", "most"), [(0, 0), (1, 5), (2, 10), (3, 20), (7, 300), (10_000, 300)])
def test_the_wait_doubles_up_to_its_maximum(idle: int, most: float) -> None:
    waits = [backoff.delay(Backoff(), idle, f"uid/{n}") for n in range(50)]
    assert all(most * (1 - backoff.JITTER) <= wait <= most for wait in waits)
    assert most == 0 or len(set(waits)) > 40, "no jitter"


def test_the_wait_is_the_same_each_time_it_is_asked_for() -> None:
    assert backoff.delay(Backoff(), 3, "uid/7") == backoff.delay(Backoff(), 3, "uid/7")


def test_no_wait_where_it_is_turned_off() -> None:
    assert backoff.delay(Backoff(initial_seconds=0, max_seconds=0), 3, "uid/7") == 0
