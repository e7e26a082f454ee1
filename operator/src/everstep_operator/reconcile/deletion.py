"""The job is being deleted. With deletionPolicy Delete a finalizer holds it until its checkpoints are gone."""

from __future__ import annotations

from everstep_operator.api import ConditionType
from everstep_operator.build.names import FINALIZER
from everstep_operator.reconcile import conditions, launch, storage, teardown
from everstep_operator.reconcile.attempt import Attempt, conflict
from everstep_operator.reconcile.observation import Observation
from everstep_operator.reconcile.plan import Action, AddFinalizer, DeleteCheckpoints, Plan, RemoveFinalizer

LOOK_SECONDS = 30.0


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
    # Checkpoints that stay are to have the last save: the garbage collector, too, leaves pods their own grace.
    grace = teardown.GRACE if observation.job.spec.deletion_policy == "Delete" else None
    deletes = teardown.deletions(status, pods, grace)
    if FINALIZER not in observation.job.metadata.finalizers:
        return Plan(status, actions=deletes)
    if observation.job.spec.deletion_policy != "Delete" or observation.results.checkpoints_deleted:
        return Plan(status, actions=(*deletes, RemoveFinalizer(FINALIZER)))
    if teardown.in_the_way(observation, pods):
        return Plan(status, actions=deletes, requeue_after=launch.STOPPING_SECONDS)
    found = observation.results.problem or observation.stored.problem or observation.results.deletion
    if found is not None and storage.is_final(found, attempt):
        return Plan(status, actions=(*deletes, RemoveFinalizer(FINALIZER)))  # nothing was ever written there
    if found is not None:
        message = f"{found.message}; the job is kept until its checkpoints are deleted, or deletionPolicy is Retain"
        status = conditions.put(observation, status, ConditionType.STORAGE_READY, False, found.reason, message)
        wait = storage.retry_after(observation, status, found)
        # Where deleting failed, the actor's own pauses say when it is tried again.
        more = (DeleteCheckpoints(),) if found is observation.results.deletion else ()
        return Plan(status, actions=(*deletes, *more), requeue_after=wait)
    nothing = observation.stored.catalog is None and attempt.number == 0
    if nothing or conflict(observation) is not None:
        return Plan(status, actions=(*deletes, RemoveFinalizer(FINALIZER)))
    # It goes on beside the passes and wakes the job when it has ended; the look in between is for a lost wake-up.
    return Plan(status, actions=(*deletes, DeleteCheckpoints()), requeue_after=LOOK_SECONDS)
