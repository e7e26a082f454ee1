"""An attempt has failed: record it, once, and lead to the next one or to the job's end."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from everstep_operator.api import ConditionType, TrainingJobStatus
from everstep_operator.api.status import Restarts
from everstep_operator.reconcile import (
    backoff,
    classify,
    conditions,
    disruption,
    ends,
    history,
    launch,
    limits,
    recovery,
    stall,
    starting,
    suspend,
    window,
)
from everstep_operator.reconcile.attempt import Attempt, committed, current
from everstep_operator.reconcile.classify import Cause
from everstep_operator.reconcile.observation import Observation
from everstep_operator.reconcile.plan import Plan


def failed(observation: Observation, attempt: Attempt, status: TrainingJobStatus, cause: Cause) -> Plan:
    cause = _unmistakable(cause)
    policy = observation.job.spec.failure_policy
    before = status.restarts or Restarts()
    idle = _without_progress(observation, attempt, before)
    disrupted = min(before.disrupted, idle)
    used = window.used(policy, before, observation.now)
    asked = disruption.may_be_asked(observation, attempt)
    verdict = limits.judge(policy, used, cause, idle - disrupted, _superseded(observation, attempt), asked)
    doubtful = verdict.rule is None and not asked and disruption.may_become_clear(observation, cause)
    if verdict.end is not None and doubtful:  # an end is for good
        return Plan(status, requeue_after=observation.poll_seconds)
    status = history.ended(observation, attempt, status, cause, verdict.rule)
    if verdict.end is not None:
        restarts = before.model_copy(update={"without_progress": idle, "next_time": None})
        status = status.model_copy(update={"restarts": restarts})
        return ends.fail(observation, current(observation.written(status)), status, verdict.end, verdict.message)
    wait = backoff.delay(policy.backoff, idle, f"{observation.job.metadata.uid}/{attempt.number}")
    restarts = before.model_copy(
        update={
            "total": before.total + 1,
            "counted": before.counted + int(verdict.counted),
            "without_progress": idle,
            "disrupted": min(idle, disrupted + int(not verdict.counted)),
            "recent": window.record(policy, before, observation.now, verdict.counted),
            "last_reason": cause.message[:1024],
            "last_time": observation.now,
            "next_time": observation.now + timedelta(seconds=wait) if wait else None,
        }
    )
    found = recovery.begin(observation, attempt, cause)
    status = status.model_copy(update={"restarts": restarts, "recovery": found, "gang": None, "nodes": 0})
    status = conditions.put(observation, status, ConditionType.RUNNING, False, "Restarting", cause.message)
    status = conditions.put(observation, status, ConditionType.RESTARTING, True, cause.reason, cause.message)
    if cause.reason == stall.REASON:
        status = conditions.put(observation, status, ConditionType.STALLED, True, cause.reason, cause.message)
    written = observation.written(status)
    follow = suspend.plan if observation.job.spec.suspend else launch.plan
    return follow(written, current(written), status)


def _unmistakable(cause: Cause) -> Cause:
    """A script may name its exception, or a kubelet its reason, as the operator names an end of its own
    (google.api_core has a DeadlineExceeded): recorded so, the attempt would pass for one that was stopped by plan."""
    ours = (stall.REASON, starting.REASON) if cause.weight == classify.ROOT else ()
    return replace(cause, reason=f"{cause.reason}Error") if cause.reason in (*history.PLANNED, *ours) else cause


def _without_progress(observation: Observation, attempt: Attempt, before: Restarts) -> int:
    """Attempts in a row that committed nothing; one whose catalog cannot be read now is not held against the job."""
    if committed(observation, attempt.number):
        return 0
    return before.without_progress + (1 if observation.stored.problem is None else 0)


def _superseded(observation: Observation, attempt: Attempt) -> bool:
    catalog = observation.stored.catalog
    return observation.stored.problem is None and (catalog is None or catalog.attempt > attempt.number)
