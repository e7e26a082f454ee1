"""The planned end of an attempt that another one follows: an edit overtook it, or a restart was asked for.

It is recorded before the first pod is deleted, so that no later pass takes it for a failure, and nothing is counted.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from everstep_operator.api import ConditionType, TrainingJobStatus
from everstep_operator.reconcile import attempt as attempts
from everstep_operator.reconcile import conditions, failure, history, launch, recovery, storage
from everstep_operator.reconcile.attempt import Attempt
from everstep_operator.reconcile.classify import Cause
from everstep_operator.reconcile.observation import Observation, ProblemKind, Results
from everstep_operator.reconcile.plan import Plan

ENDING = timedelta(seconds=30)
"""For how long a gang that has come to its end may still show pods that run."""


def can_save(observation: Observation, attempt: Attempt) -> bool:
    """Whether a save could succeed; else the stop waits, and the gang goes on."""
    found = storage.problem(observation, attempt)
    return found is None or not (storage.is_storage(found) or found.kind is ProblemKind.CLUSTER)


def has_begun_to_end(observation: Observation, attempt: Attempt) -> bool:
    """Whether there is nothing left to train: what the script still does, such as an export, is no edit's to stop."""
    return failure.has_finished(observation, attempt) or any(pod.phase == "Succeeded" for pod in attempt.pods)


def is_ending(observation: Observation, attempt: Attempt) -> bool:
    """Whether a gang has come to its end just now, and a moment later the job has succeeded. Not for longer than that:
    who suspends a job is to have its room, and who restarts it its end, even where a pod of a gang that has ended never
    does."""
    if not attempt.launched or attempt.ended:
        return False
    found = failure.beating(observation, attempt)
    if found is not None and failure.has_finished(observation, attempt) and found.in_phase < ENDING.total_seconds():
        return True
    ends = [pod.container.finished for pod in attempt.pods if pod.phase == "Succeeded"]
    return any(end is not None and abs(observation.now - end) < ENDING for end in ends)


def stop(observation: Observation, attempt: Attempt, status: TrainingJobStatus, reason: str, message: str) -> Plan:
    """The pods get their own grace, in which the workers save; the next attempt comes when they are gone."""
    status = history.ended(observation, attempt, status, Cause(reason, message))
    status = recovery.drop(status).model_copy(update={"gang": None, "nodes": 0})
    status = conditions.put(observation, status, ConditionType.RESTARTING, True, reason, message)
    written = replace(observation, results=Results()).written(status)
    return launch.plan(written, attempts.current(written), status)
