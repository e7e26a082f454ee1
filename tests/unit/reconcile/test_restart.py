"""A failure is recorded once, and before anything is done about it."""

from __future__ import annotations

from typing import Any

import pytest

from everstep_operator.api import Phase
from everstep_operator.reconcile import decide
from everstep_operator.reconcile.observation import NodeView, Problem, ProblemKind, Stored
from everstep_operator.reconcile.plan import DeletePod, Fence, Plan
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

CRASH = failed(1, message=record(rank=1, exit_code=1, exception="ValueError", message="bad shape", step=37))


def after_crash(status: dict[str, Any] | None = None, **spec: Any) -> Plan:
    return decide(observe(job(running(status), **spec), pod(0), CRASH, catalog=committed(30), heartbeat=beat(36)))


def test_the_record() -> None:
    plan = after_crash()
    (entry,) = plan.status.history
    assert (entry.attempt, entry.reason, entry.rank, entry.code) == (1, "ValueError", 1, 1)
    assert (entry.pod, entry.node, entry.from_step, entry.to_step) == ("job-1-1", "node-b", 0, 37)
    assert (entry.started, entry.ended, entry.seconds) == (at(-3600), at(0), 3600)
    assert plan.status.phase is Phase.RESTARTING
    restarts = plan.status.restarts
    assert restarts is not None
    assert (restarts.total, restarts.counted, restarts.without_progress, restarts.next_time) == (1, 1, 0, None)
    assert restarts.last_reason == "rank 1 on node-b failed: ValueError: bad shape"
    assert plan.status.gang is None
    assert plan.status.is_true("Restarting")
    assert [(event.type, event.reason, event.key) for event in plan.events if event.type == "Warning"] == [
        ("Warning", "GangFailed", "1")
    ]


def test_the_fence_comes_first_and_the_grace_is_short() -> None:
    plan = after_crash()
    assert plan.actions == (
        Fence(2, expect_existing=True, expected=1),
        DeletePod("job-1-0", "pod-1-0", 1),
        DeletePod("job-1-1", "pod-1-1", 1),
    )
    assert plan.again


@pytest.mark.parametrize(
    "name", ["DeadlineExceeded", "RestartRequested", "Suspended", "Completed", "Stopped", "Terminated", "Stalled"]
)
def test_an_exception_that_is_named_like_an_end_of_ours_is_a_failure_all_the_same(name: str) -> None:
    """google.api_core has a DeadlineExceeded."""
    crash = failed(1, message=record(rank=1, exit_code=1, exception=f"vendor.{name}", message="no answer"))
    plan = decide(observe(job(running()), pod(0), crash, catalog=committed(30), heartbeat=beat(36)))
    assert plan.status.restarts is not None
    assert (plan.status.restarts.counted, plan.status.is_true("Stalled")) == (1, False)
    assert plan.actions[1:] == (DeletePod("job-1-0", "pod-1-0", 1), DeletePod("job-1-1", "pod-1-1", 1))
    assert "GangFailed" in [event.reason for event in plan.events]
    rule = {"name": "vendor", "action": "FailJob", "onReasons": [name]}
    of = job(running(), failurePolicy__rules=[rule])
    ends = decide(observe(of, pod(0), crash, catalog=committed(30), heartbeat=beat(36)))
    assert ends.status.phase is Phase.FAILED, "rules know it by its own name"


def test_it_is_recorded_once() -> None:
    """After a kill between the status and the fence, the same pods are seen again."""
    first = after_crash()
    plan = decide(observe(job(first.status.dump()), pod(0), CRASH, catalog=committed(30), heartbeat=beat(36)))
    assert (plan.status, plan.events, plan.actions) == (first.status, (), first.actions)


def test_an_attempt_that_the_status_does_not_know_is_recorded_under_its_number() -> None:
    """After a kill between the pods and the status."""
    plan = decide(observe(job(), pod(0), CRASH, catalog=claimed()))
    assert (plan.status.attempt, [entry.attempt for entry in plan.status.history]) == (1, [1])


@pytest.mark.parametrize(
    ("before", "catalog", "without", "waits"),
    [
        (0, committed(30), 0, False),
        (2, committed(30), 0, False),
        (0, claimed(), 1, True),
        (1, claimed(), 2, True),
        (0, claimed(2, fenced(2, committed(30))), 1, True),
    ],
)
def test_attempts_that_commit_nothing_are_counted_and_waited_for(
    before: int, catalog: Any, without: int, waits: bool
) -> None:
    number = catalog.attempt
    status = running({"restarts": {"withoutProgress": before}}, number)
    plan = decide(observe(job(status), pod(0, number), crashed(1, number), catalog=catalog))
    restarts = plan.status.restarts
    assert restarts is not None
    assert (restarts.without_progress, restarts.next_time is not None) == (without, waits)
    assert isinstance(plan.actions[0], Fence), "the wait is for the pods, not for the fence"


def test_a_catalog_that_cannot_be_read_is_not_held_against_the_attempt() -> None:
    stored = Stored(problem=Problem(ProblemKind.UNAVAILABLE, "StorageUnavailable", "no answer"))
    plan = decide(observe(job(running()), pod(0), crashed(1), stored=stored))
    restarts = plan.status.restarts
    assert restarts is not None
    assert (restarts.total, restarts.without_progress) == (1, 0)
    assert all(isinstance(action, DeletePod) for action in plan.actions), "no fence without storage"


@pytest.mark.parametrize(
    ("spec", "status", "reason"),
    [
        ({"failurePolicy__maxRestarts": 1}, {"restarts": {"counted": 1, "total": 1}}, "RestartLimit"),
        ({"failurePolicy__maxRestarts": 0}, {}, "RestartLimit"),
        (
            {"failurePolicy__rules": [{"name": "r", "action": "FailJob", "onReasons": ["ValueError"]}]},
            {},
            "FailJobRule",
        ),
    ],
)
def test_the_end(spec: dict[str, Any], status: dict[str, Any], reason: str) -> None:
    plan = after_crash(status, **spec)
    assert plan.status.phase is Phase.FAILED
    condition = plan.status.condition("Failed")
    assert condition is not None
    assert (condition.status, condition.reason) == ("True", reason)
    assert "bad shape" in condition.message
    assert plan.status.completion_time == at(0)
    assert plan.status.active_since is None
    assert [entry.attempt for entry in plan.status.history] == [1]
    assert plan.actions == (DeletePod("job-1-0", "pod-1-0", 1),), "the failed pod stays for its log"
    assert [event.reason for event in plan.events][-1] == "Failed"
    assert decide(observe(job(plan.status.dump(), **spec), CRASH, catalog=committed(30))).status == plan.status


def test_three_attempts_without_a_commit_end_the_job() -> None:
    plan = decide(observe(job(running({"restarts": {"withoutProgress": 2}})), pod(0), crashed(1), catalog=claimed()))
    condition = plan.status.condition("Failed")
    assert condition is not None
    assert (condition.reason, condition.message.split(";")[0]) == (
        "NoProgress",
        "3 attempts in a row committed nothing",
    )


def test_being_fenced_by_the_loss_of_the_catalog_is_not_counted() -> None:
    fence = record(rank=0, exit_code=76, exception="FencedError", message="the catalog is gone")
    status = running({"lastCheckpoint": {"step": 5, "location": "x"}})
    plan = decide(observe(job(status), failed(0, message=fence), pod(1)))
    restarts = plan.status.restarts
    assert restarts is not None
    assert (restarts.total, restarts.counted) == (1, 0)
    assert not any(isinstance(action, Fence) for action in plan.actions)


def test_a_failure_while_the_job_is_to_be_suspended_starts_no_attempt() -> None:
    plan = after_crash(suspend=True)
    assert [entry.reason for entry in plan.status.history] == ["ValueError"]
    assert not any(isinstance(action, Fence) for action in plan.actions)


def test_pods_on_a_lost_node_are_not_waited_for() -> None:
    nodes = (NodeView("node-a"), NodeView("node-b", exists=False))
    first = decide(observe(job(running()), pod(0), pod(1), catalog=committed(30), nodes=nodes))
    assert first.status.history[0].reason == "NodeLost"
    stuck = pod(1, deleting=True, deletion_grace=1)
    second = decide(observe(job(first.status.dump()), stuck, catalog=fenced(2, committed(30)), nodes=nodes))
    assert [type(action).__name__ for action in second.actions] == ["CreatePod", "CreatePod"]


def test_a_pod_that_no_kill_ends_does_not_hold_the_job_for_ever() -> None:
    """A process that hangs in a driver stays, on a node that is well."""
    first = decide(observe(job(running()), pod(0), crashed(1), catalog=committed(30)))
    catalog = fenced(2, committed(30))
    for late, starts in ((300, False), (301, True)):
        hangs = pod(0, deleting=True, deletion_grace=1, stop_by=at(-late))
        second = decide(observe(job(first.status.dump()), hangs, catalog=catalog))
        assert ("CreatePod" in {type(action).__name__ for action in second.actions}) is starts
    again = decide(observe(job(first.status.dump()), hangs, pod(0, 2), pod(1, 2), catalog=catalog))
    condition = again.status.condition("Running")
    assert condition is not None
    assert (condition.status, condition.message) == ("True", "all pods run; job-1-0 on node-a did not stop")
    assert decide(observe(job(again.status.dump()), hangs, pod(0, 2), pod(1, 2), catalog=catalog)).actions == ()


def test_history_has_a_bound() -> None:
    past = [{"attempt": n, "reason": "Error"} for n in range(1, 11)]
    status = running({"history": past}, 11)
    plan = decide(observe(job(status), pod(0, 11), crashed(1, 11), catalog=claimed(11)))
    assert [entry.attempt for entry in plan.status.history] == list(range(2, 12))


def test_a_stall_is_told_by_its_condition_until_the_gang_runs_again() -> None:
    stalled = decide(observe(job(running()), pod(0), pod(1), catalog=committed(30), heartbeat=beat(36, still=700)))
    assert stalled.status.is_true("Stalled")
    again = decide(observe(job(stalled.status.dump()), pod(0, 2), pod(1, 2), catalog=fenced(2, committed(30))))
    assert not again.status.is_true("Stalled")
    assert not again.status.is_true("Restarting")
    assert again.status.phase is Phase.RUNNING
