"""suspend: the pods get their grace, in which the workers save, and nothing follows until it is false again.

The attempt's planned end is recorded before its first pod is deleted, so that no later pass takes it for a failure.
"""

from __future__ import annotations

from everstep_operator.api import ConditionType, Phase, TrainingJobStatus
from everstep_operator.reconcile import conditions, deadline, history, launch, recovery, storage, teardown
from everstep_operator.reconcile.attempt import Attempt
from everstep_operator.reconcile.classify import Cause
from everstep_operator.reconcile.observation import Observation
from everstep_operator.reconcile.plan import Plan


def plan(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> Plan:
    begun = attempt.number > 0 and (attempt.launched or attempt.claimed or bool(attempt.pods))
    if begun and not attempt.ended:
        status = history.ended(observation, attempt, status, Cause(history.SUSPENDED, "suspended by spec.suspend"))
        status = status.model_copy(update={"gang": None, "nodes": 0})
    pods = (*attempt.others, *attempt.pods)
    deletes = teardown.deletions(status, pods)
    blocking = teardown.in_the_way(observation, pods)
    status = recovery.drop(deadline.stop(status, observation.now))
    kind = ConditionType.SUSPENDED
    if blocking:
        names = ", ".join(pod.name for pod in blocking)
        message = f"waiting for {names} to save and stop"
        status = conditions.put(observation, status, kind, False, "Stopping", message)
        status = conditions.put(observation, status, ConditionType.RUNNING, False, "Stopping", message)
        return Plan(status, actions=deletes, requeue_after=launch.STOPPING_SECONDS)
    status = status.model_copy(update={"phase": Phase.SUSPENDED})
    message = "set spec.suspend to false to resume"
    status = conditions.put(observation, status, kind, True, "SpecSuspend", message)
    status = conditions.put(observation, status, ConditionType.RUNNING, False, "Suspended", message)
    for other in (ConditionType.RESTARTING, ConditionType.STALLED):
        status = conditions.clear(observation, status, other, "Suspended", message)
    return Plan(storage.ready(observation, attempt, status), actions=deletes)
