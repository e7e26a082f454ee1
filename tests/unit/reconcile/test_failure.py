"""Whether an attempt has failed, and when it is too early to say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from everstep_operator.reconcile import completion, decide, failure
from everstep_operator.reconcile.attempt import current
from everstep_operator.reconcile.observation import (
    ConditionView,
    HeartbeatView,
    NodeView,
    Observation,
    PodView,
    Results,
)
from everstep_operator.reconcile.plan import ReadLogs
from tests.support.observations import (
    at,
    beat,
    claimed,
    crashed,
    failed,
    fenced,
    job,
    observe,
    pod,
    record,
    running,
    succeeded,
)
from tests.unit.reconcile.test_torchrun import SUMMARY

SICK = (NodeView("node-a"), NodeView("node-b", ready=False))
SILENT = (NodeView("node-a"), NodeView("node-b", lease_silent=True))
YOUNG = pod(0, created=at(-5))
ECHO = record(exit_code=1, peer_lost=True)
STOPPED = record(signal="SIGTERM", exit_code=143)


def reason(observation: Observation) -> str | None:
    cause = failure.find(observation, current(observation))
    return cause.reason if cause else None


def seen(*pods: PodView, **changes: Any) -> Observation:
    return observe(job(running()), *pods, **{"catalog": claimed(), **changes})


@pytest.mark.parametrize(
    ("observation", "expected"),
    [
        pytest.param(seen(pod(0), pod(1)), None, id="all well"),
        pytest.param(seen(pod(0), failed(1)), "Error", id="a failed pod"),
        pytest.param(
            seen(pod(0), replace(failed(1), phase="Running")), "Error", id="a failed trainer beside a living sidecar"
        ),
        pytest.param(seen(pod(0)), "PodDeleted", id="a missing pod"),
        pytest.param(seen(), "PodDeleted", id="no pod at all"),
        pytest.param(seen(pod(0), pod(1, deleting=True)), None, id="a pod that is stopping may save"),
        pytest.param(
            seen(failed(0, message=STOPPED), pod(1, deleting=True)),
            None,
            id="a peer has saved, the stopping pod not yet",
        ),
        pytest.param(
            seen(failed(0, code=1), pod(1, deleting=True)), "Error", id="a peer has failed while another stops"
        ),
        pytest.param(seen(failed(0, message=STOPPED)), "PodDeleted", id="the stopping pod is gone"),
        pytest.param(seen(pod(0), pod(1), nodes=SICK), "NodeLost", id="unready node, no heartbeat"),
        pytest.param(seen(pod(0), pod(1), nodes=SILENT), "NodeLost", id="silent Lease, no heartbeat"),
        pytest.param(seen(pod(0), pod(1), nodes=SICK, heartbeat=beat(beat_age=3)), None, id="unready node, heartbeat"),
        pytest.param(
            seen(pod(0), pod(1), nodes=SICK, heartbeat=beat(beat_age=20)), "NodeLost", id="unready node, old heartbeat"
        ),
        pytest.param(
            seen(pod(0), pod(1), nodes=SICK, heartbeat=beat(attempt=9)), "NodeLost", id="another attempt's heartbeat"
        ),
        pytest.param(seen(pod(0), succeeded(1), nodes=SICK), None, id="an ended pod on an unready node"),
        pytest.param(
            seen(pod(0), pod(1, deleting=True), nodes=SICK, heartbeat=beat()), "NodeLost", id="evicted from a lost node"
        ),
        pytest.param(
            seen(pod(0), pod(1), nodes=SICK, heartbeat=beat(still=60)), "NodeLost", id="unready node, beats but no step"
        ),
        pytest.param(
            seen(pod(0), pod(1), nodes=SICK, heartbeat=beat(still=60, seconds_per_step=30.0)), None, id="long steps"
        ),
        pytest.param(seen(pod(0), pod(1), heartbeat=beat(still=599)), None, id="slow"),
        pytest.param(seen(pod(0), pod(1), heartbeat=beat(still=600)), "Stalled", id="no step for long"),
        pytest.param(seen(succeeded(0), pod(1), heartbeat=beat(phase="finished", still=599)), None, id="finished"),
        pytest.param(seen(pod(1), heartbeat=beat(phase="finished")), None, id="finished, a pod cleared away"),
        pytest.param(seen(failed(1), heartbeat=beat(phase="finished")), "PodDeleted", id="finished, but a pod failed"),
        pytest.param(
            seen(pod(1), heartbeat=beat(phase="finished"), catalog=claimed(1, claimed(), "again")),
            "PodDeleted",
            id="finished, but by a worker group that another one has followed",
        ),
    ],
)
def test_recorded_gang(observation: Observation, expected: str | None) -> None:
    assert reason(observation) == expected


@pytest.mark.parametrize(
    ("observation", "expected"),
    [
        pytest.param(observe(job(), catalog=fenced()), None, id="fenced, no pods yet"),
        pytest.param(observe(job(), YOUNG, catalog=fenced()), None, id="half a gang"),
        pytest.param(observe(job(), YOUNG, catalog=claimed()), None, id="half a gang that has claimed already"),
        pytest.param(observe(job(), failed(0), catalog=fenced()), "Error", id="half a gang that has failed"),
        pytest.param(observe(job(), catalog=claimed()), "PodDeleted", id="claimed, and all pods are gone"),
    ],
)
def test_gang_that_the_status_does_not_know(observation: Observation, expected: str | None) -> None:
    assert reason(observation) == expected


def test_the_size_is_the_one_that_the_gang_was_created_with() -> None:
    grown = observe(job(running(), nodes=4), pod(0), pod(1), catalog=claimed())
    assert reason(grown) is None


@pytest.mark.parametrize(
    ("pods", "heartbeat", "done"),
    [
        ((succeeded(0), succeeded(1)), None, True),
        ((succeeded(0), replace(succeeded(1), phase="Running")), None, True),
        ((succeeded(0), pod(1)), None, False),
        ((succeeded(0), failed(1)), None, False),
        ((succeeded(0),), None, False),
        ((succeeded(0),), beat(phase="finished"), True),
        ((), beat(phase="finished"), True),
        ((succeeded(0),), beat(phase="finished", step=60, total_steps=60), True),
        ((succeeded(0),), beat(phase="finished", step=17, total_steps=60), False),
        ((succeeded(0), replace(succeeded(1), deleting=True)), None, False),
        ((succeeded(0), replace(succeeded(1), deleting=True)), beat(phase="finished"), True),
    ],
)
def test_completion(pods: tuple[PodView, ...], heartbeat: HeartbeatView | None, done: bool) -> None:
    observation = seen(*pods, heartbeat=heartbeat)
    assert completion.succeeded(observation, current(observation)) is done


@pytest.mark.parametrize(
    ("pods", "wanted"),
    [
        pytest.param((pod(0), crashed(1)), (), id="a record explains it"),
        pytest.param((pod(0), failed(1)), ("job-1-1",), id="a bare exit code"),
        pytest.param((pod(0), failed(1, message=SUMMARY)), (), id="a signal in the summary"),
        pytest.param((pod(0), failed(1, message=SUMMARY.replace("-9", "1"))), ("job-1-1",), id="a code in the summary"),
        pytest.param((failed(0), crashed(1)), (), id="one explanation is enough"),
        pytest.param(
            (failed(0, message=ECHO), failed(1, message=ECHO)), ("job-1-0", "job-1-1"), id="nothing but echoes"
        ),
        pytest.param((failed(0),), (), id="a missing pod explains it"),
        pytest.param((failed(0, reason="OOMKilled"), failed(1)), (), id="the container's reason explains it"),
    ],
)
def test_logs_are_read_only_where_nothing_else_tells(pods: tuple[PodView, ...], wanted: tuple[str, ...]) -> None:
    observation = seen(*pods)
    plan = decide(observation)
    asked = [action.pods for action in plan.actions if isinstance(action, ReadLogs)]
    assert asked == ([wanted] if wanted else [])
    assert bool(plan.status.history) is not bool(wanted), "recorded as soon as nothing more is asked"
    told = decide(replace(observation, results=Results(logs=dict.fromkeys(wanted, "") or {"other": ""})))
    assert len(told.status.history) == 1


@pytest.mark.parametrize(
    ("conditions", "reason", "message"),
    [
        (
            (ConditionView("DisruptionTarget", "True", "EvictionByEvictionAPI", "Eviction API: evicting"),),
            "EvictionByEvictionAPI",
            "pod 1 (job-1-1) on node-b was disrupted: Eviction API: evicting",
        ),
        ((), "PodDeleted", "pod 1 (job-1-1) on node-b was deleted"),
    ],
)
def test_why_a_pod_left_is_remembered_until_it_is_gone(conditions: Any, reason: str, message: str) -> None:
    """And decides about the rules: a drain is often not to be counted."""
    rule = {"name": "drain", "action": "RestartUncounted", "onPodConditions": [{"type": "DisruptionTarget"}]}
    leaving = pod(1, deleting=True, deletion_grace=30, conditions=conditions)
    first = decide(observe(job(running()), pod(0), leaving, catalog=claimed()))
    assert first.actions == (), "its grace is its own"
    of = job(first.status.dump(), failurePolicy__rules=[rule])
    plan = decide(observe(of, failed(0, message=STOPPED), catalog=claimed()))
    (entry,) = plan.status.history
    assert (entry.reason, entry.message, entry.node) == (reason, message, "node-b")
    assert entry.rule == ("drain" if conditions else None)
