"""The two ends of a job, and what is left to do after them. Both are for good."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from everstep_operator.api import ConditionType, Phase, TrainingJobStatus
from everstep_operator.reconcile import checkpoints, conditions, deadline, history, progress, retention, teardown
from everstep_operator.reconcile.attempt import Attempt, own
from everstep_operator.reconcile.classify import Cause
from everstep_operator.reconcile.observation import Observation
from everstep_operator.reconcile.plan import DeleteJob, Plan


def succeed(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> Plan:
    status = history.ended(observation, attempt, status, Cause(history.COMPLETED, "all pods succeeded"))
    last = status.last_checkpoint
    message = f"all {attempt.nodes} pods of attempt {attempt.number} succeeded"
    if last is not None:
        message += f"; the last checkpoint is step {last.step}"
    status = _end(observation, status, Phase.SUCCEEDED, history.COMPLETED)
    status = conditions.put(observation, status, ConditionType.COMPLETE, True, "AllPodsSucceeded", message)
    return finished(observation.written(status), replace(attempt, end=status.history[-1]))


def fail(observation: Observation, attempt: Attempt, status: TrainingJobStatus, reason: str, message: str) -> Plan:
    """The attempt's own end is in the status already, if it had begun."""
    status = _end(observation, status, Phase.FAILED, reason)
    status = conditions.put(observation, status, ConditionType.FAILED, True, reason, message)
    return finished(observation.written(status), attempt)


def finished(observation: Observation, attempt: Attempt) -> Plan:
    """The last gang's pods stay for `kubectl logs`, unless they still run; everything else is cleared away."""
    status = checkpoints.describe(observation, observation.job.status)
    if status.phase is Phase.SUCCEEDED:
        status = progress.describe(observation, replace(attempt, end=None), status)
    running = (pod for pod in attempt.pods if not pod.terminal)
    upkeep = retention.upkeep(observation, once=True)
    actions = (*teardown.deletions(status, [*attempt.others, *running]), *upkeep)
    left = _seconds_to_live(observation, status)
    if left is not None and left <= 0:
        return Plan(status, actions=(*actions, DeleteJob(observation.job.metadata.uid)))
    catalog = own(observation)
    more = upkeep or (catalog is not None and catalog.removing)
    waits = [seconds for seconds in (left, observation.poll_seconds if more else None) if seconds is not None]
    return Plan(status, actions=actions, requeue_after=min(waits, default=None))


def _end(observation: Observation, status: TrainingJobStatus, phase: Phase, reason: str) -> TrainingJobStatus:
    status = deadline.stop(status, observation.now)
    status = status.model_copy(update={"phase": phase, "completion_time": observation.now})
    status = conditions.put(observation, status, ConditionType.RUNNING, False, reason)
    for kind in (ConditionType.RESTARTING, ConditionType.STALLED, ConditionType.SUSPENDED):
        status = conditions.clear(observation, status, kind, reason)
    return status


def _seconds_to_live(observation: Observation, status: TrainingJobStatus) -> float | None:
    limit = observation.job.spec.ttl_seconds_after_finished
    if limit is None or status.completion_time is None:
        return None
    return (status.completion_time + timedelta(seconds=limit) - observation.now).total_seconds()
