"""The planned end of an attempt that another one follows: an edit overtook it, or a restart was asked for.

It is recorded before the first pod is deleted, so that no later pass takes it for a failure, and nothing is counted.
"""

from __future__ import annotations

from dataclasses import replace

from everstep_operator.api import ConditionType, TrainingJobStatus
from everstep_operator.reconcile import attempt as attempts
from everstep_operator.reconcile import conditions, failure, history, launch, recovery, storage
from everstep_operator.reconcile.attempt import Attempt
from everstep_operator.reconcile.classify import Cause
from everstep_operator.reconcile.observation import Observation, ProblemKind, Results
from everstep_operator.reconcile.plan import Plan


def possible(observation: Observation, attempt: Attempt) -> bool:
    """Not where a save could not succeed, nor a gang that comes to its end just now: it waits, and the gang goes on."""
    found = storage.problem(observation, attempt)
    if found is not None and (storage.is_storage(found) or found.kind is ProblemKind.CLUSTER):
        return False
    return not failure.has_finished(observation, attempt) and not any(pod.phase == "Succeeded" for pod in attempt.pods)


def stop(observation: Observation, attempt: Attempt, status: TrainingJobStatus, reason: str, message: str) -> Plan:
    """The pods get their own grace, in which the workers save; the next attempt comes when they are gone."""
    status = history.ended(observation, attempt, status, Cause(reason, message))
    status = recovery.drop(status).model_copy(update={"gang": None, "nodes": 0})
    status = conditions.put(observation, status, ConditionType.RESTARTING, True, reason, message)
    written = replace(observation, results=Results()).written(status)
    return launch.plan(written, attempts.current(written), status)
