"""What is nobody's fault, and what the job's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from everstep_operator.reconcile import classify, decide, disruption
from everstep_operator.reconcile.observation import (
    ConditionView,
    ContainerView,
    NodeView,
    PodView,
    Problem,
    ProblemKind,
    Results,
    Stored,
)
from tests.support.observations import (
    at,
    claimed,
    committed,
    crashed,
    failed,
    job,
    observe,
    pod,
    record,
    running,
    succeeded,
)
from tests.unit.reconcile.test_torchrun import SUMMARY

DRAIN = ConditionView("DisruptionTarget", "True", "EvictionByEvictionAPI", "Eviction API: evicting")
NO_CONTAINER = ContainerView()


def refused(reason: str) -> PodView:
    return pod(1, phase="Failed", reason=reason, container=NO_CONTAINER)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        pytest.param(replace(failed(1), conditions=(DRAIN,)), True, id="drained"),
        pytest.param(
            replace(failed(1), conditions=(ConditionView("DisruptionTarget", "True", "PreemptionByScheduler"),)),
            True,
            id="preempted",
        ),
        pytest.param(
            replace(failed(1), conditions=(ConditionView("DisruptionTarget", "False", "Other"),)),
            False,
            id="a condition not so",
        ),
        pytest.param(refused("Evicted"), False, id="evicted for what it used itself"),
        pytest.param(
            replace(refused("Evicted"), message="Pod was rejected: The node had condition: [DiskPressure]. "),
            True,
            id="turned away by a node under pressure",
        ),
        pytest.param(
            pod(
                1,
                phase="Failed",
                reason="Evicted",
                conditions=(ConditionView("DisruptionTarget", "True", "ByKubelet"),),
            ),
            True,
            id="evicted for its node's sake",
        ),
        pytest.param(pod(1, phase="Failed", deleting=True), True, id="deleted"),
        pytest.param(refused("NodeLost"), True, id="its node was lost"),
        pytest.param(failed(1, reason="ContainerStatusUnknown", code=137), True, id="a kubelet that has lost it"),
        pytest.param(failed(1, reason="Unknown", code=255), True, id="its node was restarted quickly"),
        pytest.param(
            failed(1, code=255, message=record(exception="Unknown", exit_code=255)), False, id="a script's word"
        ),
        pytest.param(refused("NodeShutdown"), True, id="its node was shut down"),
        pytest.param(refused("OutOfcpu"), True, id="no room on its node"),
        pytest.param(refused("OutOfnvidia.com/gpu"), True, id="no accelerator on its node"),
        pytest.param(
            replace(failed(1, code=143), reason="Terminated"),
            True,
            id="SIGTERM of a node that was shut down",
        ),
        pytest.param(failed(1, code=137), False, id="SIGKILL"),
        pytest.param(failed(1, reason="OOMKilled", code=137), False, id="out of memory"),
        pytest.param(
            failed(1, message=record(exit_code=1, exception="torch.OutOfMemoryError", message="no memory")),
            False,
            id="out of the accelerator's memory",
        ),
        pytest.param(crashed(1), False, id="an exception"),
    ],
)
def test_whose_fault(view: PodView, expected: bool) -> None:
    assert disruption.is_one(classify.pod_failure(view), asked=False) is expected


SIGTERM = [
    pytest.param({"code": 143}, id="by its exit code"),
    pytest.param({"message": record(signal="SIGTERM", exit_code=143)}, id="by its record"),
    pytest.param({"message": SUMMARY.replace("-9", "-15")}, id="by torchrun's summary"),
    pytest.param({"message": SUMMARY.replace("-9", "143")}, id="of a worker, by torchrun's summary"),
]
DOWN = Problem(ProblemKind.UNAVAILABLE, "StorageUnavailable", "no answer")


@pytest.mark.parametrize("ending", SIGTERM)
@pytest.mark.parametrize(
    ("peer", "changes", "counted"),
    [
        pytest.param(pod(0), {}, 1, id="nobody sent one"),
        pytest.param(pod(0), {"catalog": committed(10)}, 0, id="it saved"),
        pytest.param(pod(0), {"stored": Stored(problem=DOWN)}, 0, id="nobody can tell whether it saved"),
        pytest.param(pod(0), {"nodes": (NodeView("node-b", ready=False),)}, 0, id="its node is unwell"),
        pytest.param(replace(pod(0), conditions=(DRAIN,)), {}, 0, id="its peer is to be drained"),
        pytest.param(succeeded(0), {}, 1, id="its peer succeeded"),
    ],
)
def test_sigterm_is_forgiven_where_somebody_may_have_sent_it(
    ending: dict[str, Any], peer: PodView, changes: dict[str, Any], counted: int
) -> None:
    read = Results(logs={"job-1-0": "", "job-1-1": ""})
    seen = observe(job(running()), peer, failed(1, **ending), **{"catalog": claimed(), "results": read, **changes})
    restarts = decide(seen).status.restarts
    assert restarts is not None
    assert (restarts.total, restarts.counted) == (1, counted)


def test_a_peer_that_somebody_deletes_is_reason_enough() -> None:
    read = Results(logs={"job-1-0": "", "job-1-1": ""})
    stopping = pod(0, deleting=True, deletion_grace=30)
    restarts = decide(
        observe(job(running()), stopping, failed(1, code=143), catalog=claimed(), results=read)
    ).status.restarts
    assert restarts is not None
    assert (restarts.total, restarts.counted) == (1, 0)


def test_a_script_that_ends_with_143_by_itself_comes_to_an_end() -> None:
    status, ends = running(), []
    for attempt in range(1, 9):
        catalog = claimed(attempt)
        read = Results(logs={f"job-{attempt}-{index}": "" for index in (0, 1)})
        pods = (failed(0, attempt, code=143), failed(1, attempt, code=143))
        seen = observe(job({**running(status, attempt)}), *pods, catalog=catalog, results=read, now=at(70))
        plan = decide(seen)
        status = plan.status.dump()
        ends.append(plan.status.phase)
        if plan.status.phase == "Failed":
            break
    condition = plan.status.condition("Failed")
    assert condition is not None
    assert (ends, condition.reason) == (["Restarting", "Restarting", "Failed"], "NoProgress")


def test_a_sigterm_that_comes_again_and_again_from_nobody_counts() -> None:
    """A liveness probe that fails at every long step: the kubelet sends SIGTERM and tells nobody why."""
    status, counted = running(), []
    read = Results(logs={"job-1-1": ""})
    for number in range(6):
        seen = observe(job(status), pod(0), failed(1, code=143), catalog=committed(10), results=read)
        restarts = decide(seen).status.restarts
        assert restarts is not None
        counted.append(restarts.counted)
        history = [{"attempt": 100 + past, "reason": "Stopped", "code": -15} for past in range(number + 1)]
        status = running({"restarts": {"total": restarts.total, "counted": restarts.counted}, "history": history})
    assert counted == [0, 0, 0, 1, 2, 3]
    drained = replace(pod(0), conditions=(DRAIN,))
    told = decide(observe(job(status), drained, failed(1, code=143), catalog=committed(10), results=read)).status
    assert told.restarts is not None
    assert told.restarts.counted == 3, "this one has a sender"


@pytest.mark.parametrize("limit", [{"failurePolicy__maxRestarts": 0}, {"failurePolicy__maxRestartsWithoutProgress": 1}])
def test_a_sigterm_that_would_end_the_job_waits_for_a_sign_of_its_sender(limit: dict[str, Any]) -> None:
    read = Results(logs={"job-1-0": "", "job-1-1": ""})
    seen = observe(job(running(), **limit), pod(0), failed(1, code=143), catalog=claimed(), results=read)
    for seconds in (0, 30, 58):
        plan = decide(replace(seen, now=at(seconds)))
        assert (plan.status.phase, plan.status.history, plan.actions) == ("Running", [], ())
        assert plan.requeue_after == 5
    told = decide(replace(seen, now=at(50), nodes=(NodeView("node-a"), NodeView("node-b", ready=False))))
    assert (told.status.phase, told.status.restarts and told.status.restarts.counted) == ("Restarting", 0)
    for unclear in (at(60), at(-61), at(3600)):
        assert decide(replace(seen, now=unclear)).status.phase == "Failed", "nobody, or a node whose clock is off"


def test_what_ends_a_job_otherwise_waits_for_nothing() -> None:
    of: dict[str, Any] = {"failurePolicy__maxRestarts": 0}
    assert decide(observe(job(running(), **of), pod(0), crashed(1), catalog=claimed())).status.phase == "Failed"
    rules = [{"name": "stop", "action": "FailJob", "onExitCodes": {"values": [143]}}]
    read = Results(logs={"job-1-0": "", "job-1-1": ""})
    seen = observe(job(running(), failurePolicy__rules=rules), pod(0), failed(1, code=143), results=read)
    assert decide(replace(seen, stored=Stored(claimed()))).status.phase == "Failed", "its own rule says so"


def test_a_lost_node() -> None:
    assert disruption.is_one(classify.node_lost([pod(1)], NodeView("node-b", ready=False)), asked=False)


def test_disruptions_without_end_never_end_the_job_and_wait_longer_each_time() -> None:
    status = running({"restarts": {"total": 50, "withoutProgress": 7, "disrupted": 7}})
    of = job(status, failurePolicy__maxRestarts=0)
    drained = pod(1, phase="Failed", conditions=(DRAIN,))
    restarts = decide(observe(of, pod(0), drained, catalog=committed())).status.restarts
    assert restarts is not None
    assert (restarts.total, restarts.counted, restarts.without_progress, restarts.disrupted) == (51, 0, 8, 8)
    assert restarts.next_time is not None, "no pause"


def test_a_failure_after_disruptions_is_the_first_that_counts() -> None:
    status = running({"restarts": {"total": 5, "withoutProgress": 5, "disrupted": 5}})
    plan = decide(observe(job(status), pod(0), crashed(1), catalog=committed()))
    restarts = plan.status.restarts
    assert plan.status.phase == "Restarting"
    assert restarts is not None
    assert (restarts.counted, restarts.without_progress, restarts.disrupted) == (1, 6, 5)


def test_a_commit_forgets_them() -> None:
    status = running({"restarts": {"total": 5, "withoutProgress": 5, "disrupted": 5}})
    restarts = decide(observe(job(status), pod(0), crashed(1), catalog=committed(10))).status.restarts
    assert restarts is not None
    assert (restarts.without_progress, restarts.disrupted, restarts.next_time) == (0, 0, None)
