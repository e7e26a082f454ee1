"""The job is being deleted. With deletionPolicy Delete a finalizer holds it until its checkpoints are gone."""

from __future__ import annotations

from everstep_operator.api import ConditionType
from everstep_operator.build.names import FINALIZER
from everstep_operator.reconcile import conditions, launch, storage, teardown
from everstep_operator.reconcile.attempt import Attempt, conflict
from everstep_operator.reconcile.observation import Observation
from everstep_operator.reconcile.plan import Action, AddFinalizer, DeleteCheckpoints, Plan, RemoveFinalizer


def finalizer(observation: Observation) -> tuple[Action, ...]:
    """What brings the finalizer into line with the policy of a job that is not being deleted."""
    wanted = observation.job.spec.deletion_policy == "Delete"
    held = FINALIZER in observation.job.metadata.finalizers
    if wanted and not held:
        return (AddFinalizer(FINALIZER),)
    return (RemoveFinalizer(FINALIZER),) if held and not wanted else ()


def plan(observation: Observation, attempt: Attempt) -> Plan:
    status = observation.job.status
    pods = (*attempt.others, *attempt.pods)
    deletes = teardown.deletions(status, pods)
    if FINALIZER not in observation.job.metadata.finalizers:
        return Plan(status, actions=deletes)
    if observation.job.spec.deletion_policy != "Delete" or observation.results.checkpoints_deleted:
        return Plan(status, actions=(*deletes, RemoveFinalizer(FINALIZER)))
    if teardown.in_the_way(observation, pods):
        return Plan(status, actions=deletes, requeue_after=launch.STOPPING_SECONDS)
    found = observation.results.problem or observation.stored.problem
    if found is not None:
        message = f"{found.message}; the job is kept until its checkpoints are deleted, or deletionPolicy is Retain"
        status = conditions.put(observation, status, ConditionType.STORAGE_READY, False, found.reason, message)
        return Plan(status, actions=deletes, requeue_after=storage.retry_after(observation, status))
    nothing = observation.stored.catalog is None and attempt.number == 0
    if nothing or conflict(observation) is not None:
        return Plan(status, actions=(*deletes, RemoveFinalizer(FINALIZER)))
    return Plan(status, actions=(*deletes, DeleteCheckpoints()), again=True)
