"""A gang that has waited for its pods for too long gives them back."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from everstep_operator.api import Phase
from everstep_operator.reconcile import decide, starting
from everstep_operator.reconcile.attempt import current
from everstep_operator.reconcile.observation import ConditionView, ContainerView, Observation, PodView
from everstep_operator.reconcile.plan import DeletePod, Fence
from tests.support.observations import at, fenced, job, observe, pod, running

NO_ROOM = pod(
    1,
    phase="Pending",
    node=None,
    container=ContainerView(),
    conditions=(ConditionView("PodScheduled", "False", "Unschedulable", "0/1 nodes are available"),),
)
NO_IMAGE = pod(1, phase="Pending", container=ContainerView(waiting_reason="ErrImagePull", waiting_message="not found"))


def seen(started: float, waiting: PodView, limit: int | None = 60) -> Observation:
    status = running({"phase": "Starting", "gang": {"nodes": 2, "started": at(started).isoformat()}})
    spec: dict[str, Any] = {} if limit is None else {"failurePolicy__startTimeoutSeconds": limit}
    return observe(job(status, **spec), pod(0), waiting, catalog=fenced())


def found(observation: Observation) -> tuple[str, frozenset[str]] | None:
    cause = starting.find(observation, current(observation))
    return (cause.message, cause.reasons) if cause else None


@pytest.mark.parametrize(
    ("started", "limit", "times_out"),
    [
        (-60, 60, False),
        (-75, 60, True),
        (-1200, None, False),
        (-1500, None, True),
        (-(10**6), 0, False),
    ],
)
def test_the_limit_and_its_spread(started: float, limit: int | None, times_out: bool) -> None:
    """It lies between the limit and a quarter more."""
    assert (found(seen(started, NO_ROOM, limit)) is not None) is times_out


def test_a_gang_that_runs_is_not_too_late_because_nobody_looked() -> None:
    """The operator was away from before its pods ran until long after the limit."""
    plan = decide(seen(-9999, pod(1)))
    assert (plan.status.phase, plan.status.history, plan.actions) == (Phase.RUNNING, [], ())


def test_two_gangs_do_not_give_way_at_the_same_moment() -> None:
    def moment(uid: str) -> float:
        observation = seen(-60, NO_ROOM)
        of = observation.job.model_copy(update={"metadata": observation.job.metadata.model_copy(update={"uid": uid})})
        observation = replace(observation, job=of)
        seconds = 0.0
        while (
            starting.find(replace(observation, now=observation.now + timedelta(seconds=seconds)), current(observation))
            is None
        ):
            seconds += 0.25
        return seconds

    moments = [moment(f"uid-{n}") for n in range(20)]
    assert len(set(moments)) > 10
    assert 0 <= min(moments) <= max(moments) <= 15.25


@pytest.mark.parametrize(
    ("waiting", "reason", "words"),
    [
        (NO_ROOM, "Unschedulable", "not all pods ran within 60 s: pod 1 (job-1-1): 0/1 nodes are available"),
        (NO_IMAGE, "ImagePullBackOff", "not all pods ran within 60 s: pod 1 (job-1-1): ErrImagePull: not found"),
    ],
)
def test_what_it_waited_for_can_be_matched_by_a_rule(waiting: PodView, reason: str, words: str) -> None:
    assert found(seen(-80, waiting)) == (words, frozenset({"StartTimeout", reason}))


def test_half_a_gang_whose_other_half_the_quota_forbids_gives_its_pods_back() -> None:
    condition = {
        "type": "Running",
        "status": "False",
        "reason": "QuotaExceeded",
        "message": "exceeded quota: pods",
        "lastTransitionTime": "2026-01-01T11:00:00Z",
    }
    held = replace(pod(0), created=at(-80))
    of = job({"phase": "Pending", "conditions": [condition]}, failurePolicy__startTimeoutSeconds=60)
    plan = decide(observe(of, held, catalog=fenced()))
    (entry,) = plan.status.history
    assert (entry.reason, entry.message) == ("StartTimeout", "not all pods ran within 60 s: exceeded quota: pods")
    restarts = plan.status.restarts
    assert restarts is not None
    assert (restarts.total, restarts.counted) == (1, 0), "it is not held against the job"
    assert restarts.next_time is not None, "the other gang has its turn first"
    assert [type(action) for action in plan.actions] == [Fence, DeletePod]
    young = observe(of, replace(pod(0), created=at(-50)), catalog=fenced())
    assert starting.find(young, current(young)) is None
    nothing_held = observe(of, catalog=fenced())
    assert starting.find(nothing_held, current(nothing_held)) is None


def test_a_rule_can_end_the_job_instead() -> None:
    rule = {"name": "image", "action": "FailJob", "onReasons": ["ImagePullBackOff"]}
    observation = seen(-80, NO_IMAGE)
    of = job(observation.job.status.dump(), failurePolicy__startTimeoutSeconds=60, failurePolicy__rules=[rule])
    plan = decide(replace(observation, job=of))
    assert plan.status.phase == "Failed"
    assert plan.status.history[0].rule == "image"
