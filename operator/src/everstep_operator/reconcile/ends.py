"""The two ends of a job, and what is left to do after them. Both are for good."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from everstep_operator.api import ConditionType, Phase, TrainingJobStatus
from everstep_operator.reconcile import (
    checkpoints,
    conditions,
    deadline,
    history,
    progress,
    requests,
    retention,
    storage,
    teardown,
)
from everstep_operator.reconcile.attempt import Attempt, own
from everstep_operator.reconcile.classify import Cause
from everstep_operator.reconcile.observation import Observation, PodView
from everstep_operator.reconcile.plan import DeleteJob, Plan

SETTLING = timedelta(seconds=10)
"""How long a pod may last after its trainer: the kubelet takes a second or two, a sidecar for ever."""

REMOVING = timedelta(hours=1)
"""How long beyond its time to live a job stays for the removal of what retention has given up."""


def succeed(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> Plan:
    status = history.ended(observation, attempt, status, Cause(history.COMPLETED, "all pods succeeded"))
    last = status.last_checkpoint
    pods = f"all {attempt.nodes} pods" if attempt.nodes > 1 else "the pod"
    message = f"{pods} of attempt {attempt.number} succeeded"
    if last is not None:
        message += f"; the last checkpoint is step {last.step}"
    status = _end(observation, status, Phase.SUCCEEDED, history.COMPLETED)
    status = _gang(status, f"{attempt.nodes} of {attempt.nodes} succeeded")
    status = conditions.put(observation, status, ConditionType.COMPLETE, True, "AllPodsSucceeded", message)
    return finished(observation.written(status), replace(attempt, end=status.history[-1]))


def fail(observation: Observation, attempt: Attempt, status: TrainingJobStatus, reason: str, message: str) -> Plan:
    """The attempt's own end is in the status already, if it had begun."""
    status = _gang(_end(observation, status, Phase.FAILED, reason), "stopped")
    message += _way_on(observation, status)
    status = conditions.put(observation, status, ConditionType.FAILED, True, reason, message)
    return finished(observation.written(status), attempt)


def finished(observation: Observation, attempt: Attempt) -> Plan:
    """The last gang's pods stay for `kubectl logs`, unless they run on; everything else is cleared away."""
    status = history.describe(observation, observation.job.status)
    status = requests.describe(observation, attempt, checkpoints.describe(observation, status))
    if status.phase is Phase.SUCCEEDED:
        status = progress.describe(observation, replace(attempt, end=None), status)
    settling = [pod for pod in attempt.pods if _settles(observation, status, pod)]
    running = (pod for pod in attempt.pods if not pod.terminal and pod not in settling)
    upkeep = retention.upkeep(observation, once=True)
    stored = status.condition(ConditionType.STORAGE_READY)
    if upkeep:
        status = storage.describe(observation, status, observation.results.deletion)
    elif stored is not None and stored.status == "False":
        status = storage.ready(observation, attempt, status)
    actions = (*teardown.deletions(status, [*attempt.others, *running]), *upkeep)
    left = _seconds_to_live(observation, status)
    catalog = own(observation)
    more = upkeep or (catalog is not None and catalog.removing)
    # What retention has given up would stay for ever: once the job is gone nobody removes it.
    works = bool(more) and observation.stored.problem is None and observation.results.deletion is None
    if left is not None and left <= 0:
        if not works or timedelta(seconds=-left) > REMOVING:
            return Plan(status, actions=(*actions, DeleteJob(observation.job.metadata.uid)))
        left = None
    looks = (left, observation.poll_seconds if more else None, SETTLING.total_seconds() if settling else None)
    waits = [seconds for seconds in looks if seconds is not None]
    return Plan(status, actions=actions, requeue_after=min(waits, default=None))


def _gang(status: TrainingJobStatus, summary: str) -> TrainingJobStatus:
    if status.gang is None:
        return status
    return status.model_copy(
        update={"gang": status.gang.model_copy(update={"summary": summary, "waiting": None, "succeeded": None})}
    )


def _settles(observation: Observation, status: TrainingJobStatus, pod: PodView) -> bool:
    """Its trainer has ended and its phase is about to tell: to delete it now would take its log away."""
    ended = status.completion_time or observation.now
    return pod.container.terminated and not pod.terminal and observation.now - ended < SETTLING


def _way_on(observation: Observation, status: TrainingJobStatus) -> str:
    """A job that is applied once more changes nothing, and one that is deleted may take its checkpoints along."""
    last = status.last_checkpoint
    if last is None:
        return "; to try again, delete the job and apply it anew"
    keep = "set deletionPolicy to Retain, " if observation.job.spec.deletion_policy == "Delete" else ""
    return f"; to go on from step {last.step}, {keep}delete the job and apply it anew"


def _end(observation: Observation, status: TrainingJobStatus, phase: Phase, reason: str) -> TrainingJobStatus:
    message = f"the job has {phase.lower()}"
    status = deadline.stop(status, observation.now)
    status = status.model_copy(update={"phase": phase, "completion_time": observation.now})
    status = conditions.put(observation, status, ConditionType.RUNNING, False, reason, message)
    for kind in (ConditionType.RESTARTING, ConditionType.STALLED, ConditionType.SUSPENDED):
        status = conditions.clear(observation, status, kind, reason, message)
    return conditions.drop(status, ConditionType.SPEC_APPLIED)  # no gang is left, and none comes


def _seconds_to_live(observation: Observation, status: TrainingJobStatus) -> float | None:
    limit = observation.job.spec.ttl_seconds_after_finished
    if limit is None or status.completion_time is None:
        return None
    return (status.completion_time + timedelta(seconds=limit) - observation.now).total_seconds()
