"""What a problem means: the end of a job that has not begun yet, or a condition and patience."""

from __future__ import annotations

from everstep.catalog import Heartbeat
from everstep_operator.api import ConditionType, TrainingJobStatus
from everstep_operator.reconcile import conditions
from everstep_operator.reconcile.attempt import Attempt, conflict, own
from everstep_operator.reconcile.failure import beating
from everstep_operator.reconcile.observation import Observation, Problem, ProblemKind

_ENDS_A_JOB_NOT_BEGUN = (ProblemKind.REFUSED, ProblemKind.UNSAFE, ProblemKind.RESUME_NOT_FOUND)
_OF_THE_CLUSTER = (ProblemKind.POD_REFUSED, ProblemKind.CLUSTER)
SAVES_FAIL = "SavesFail"
_SHORTEST, _LONGEST = 2.0, 60.0


def problem(observation: Observation, attempt: Attempt) -> Problem | None:
    """What keeps the job from its storage or its pods; the last action's own problem first."""
    found = observation.results.problem or observation.stored.problem
    if found is not None:
        return found
    owned = conflict(observation)
    if owned is not None:
        return Problem(ProblemKind.OWNER_CONFLICT, "OwnerConflict", owned)
    if observation.stored.catalog is None and observation.job.status.last_checkpoint is not None:
        return _missing(observation)
    if observation.stored.catalog is None and attempt.number > 0 and attempt.launched and not attempt.ended:
        return _missing(observation)
    return None


def _missing(observation: Observation) -> Problem:
    last = observation.job.status.last_checkpoint
    where = observation.job.root_uri
    known = f" although step {last.step} was committed there" if last else ""
    return Problem(
        ProblemKind.CATALOG_MISSING,
        "CatalogMissing",
        f"{where}catalog.json is gone{known}: put it back, or suspend the job and run `everstep rebuild {where}`",
    )


def is_storage(found: Problem) -> bool:
    return found.kind not in _OF_THE_CLUSTER


def is_final(found: Problem, attempt: Attempt) -> bool:
    """Whether it ends the job: only where none of its pods has run yet, so that nothing is lost by it."""
    return found.kind in _ENDS_A_JOB_NOT_BEGUN and attempt.number == 0


def describe(observation: Observation, status: TrainingJobStatus, found: Problem | None) -> TrainingJobStatus:
    if found is None or not is_storage(found):
        return status
    return conditions.put(observation, status, ConditionType.STORAGE_READY, False, found.reason, found.message)


def ready(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> TrainingJobStatus:
    """Storage does what it is asked, or not what the workers ask. Not to be said while an action that may have failed
    before is tried again."""
    if own(observation) is None or problem(observation, attempt) is not None:
        return status
    kind, message = ConditionType.STORAGE_READY, "the job's catalog can be read and written"
    found = beating(observation, attempt)
    if found is not None and found.heartbeat.saves_failed_in_a_row and not attempt.ended:
        return conditions.put(observation, status, kind, False, SAVES_FAIL, _failing(found.heartbeat))
    return conditions.put(observation, status, kind, True, "CatalogReady", message)


def _failing(beat: Heartbeat) -> str:
    count = beat.saves_failed_in_a_row
    how_many = "the last save has failed" if count == 1 else f"the last {count} saves have failed"
    return f"{how_many}, and training goes on without: {beat.last_save_error or 'the log of rank 0 says why'}"


def retry_after(observation: Observation, status: TrainingJobStatus, found: Problem | None = None) -> float:
    """Seconds: as long as it has lasted so far, within bounds, so that tries get rarer by themselves.

    Of what the cluster refuses the status does not tell since when: a gang has not run since its failure, and a quota
    that is counted a moment late must not cost the recovery as long again."""
    if found is not None and not is_storage(found):
        return min(_LONGEST, max(_SHORTEST, observation.hindered))
    kinds = (ConditionType.STORAGE_READY, ConditionType.RUNNING)
    since = [c.last_transition_time for kind in kinds if (c := status.condition(kind)) and c.status == "False"]
    lasted = (observation.now - max(since)).total_seconds() if since else 0.0
    return min(_LONGEST, max(_SHORTEST, lasted))
