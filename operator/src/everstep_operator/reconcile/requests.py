"""What annotations of the job ask for: `restart-now` and `checkpoint-now`, once for each new value.

A value that was acted on stands in the status: an operator that is killed in between neither forgets nor repeats.
"""

from __future__ import annotations

import hashlib

from everstep.catalog import Catalog
from everstep_operator.api import Phase, TrainingJobStatus
from everstep_operator.api.status import Requests
from everstep_operator.build import names
from everstep_operator.reconcile import failure, history, planned
from everstep_operator.reconcile.attempt import Attempt, own
from everstep_operator.reconcile.observation import Observation
from everstep_operator.reconcile.plan import AskForSave, Plan

_LONGEST = 256


def asked(observation: Observation, annotation: str) -> str | None:
    """The annotation's value, as the status can hold it; None where it asks for nothing."""
    value = observation.job.metadata.annotations.get(annotation) or None
    if value is None or len(value) <= _LONGEST:
        return value
    return f"sha256:{hashlib.sha256(value.encode()).hexdigest()}"


def restart(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> Plan | None:
    """The planned end of an attempt that is to be restarted: it saves first, and nothing is counted."""
    value = _restart_wanted(observation, status)
    if value is None or not attempt.launched or attempt.ended or not planned.can_save(observation, attempt):
        return None
    if planned.is_ending(observation, attempt):
        return None
    message = f"annotation {names.RESTART_NOW}={value} asks for a restart"[:1024]
    return planned.stop(observation, attempt, _acknowledged(status, value), history.REQUESTED, message)


def ask(observation: Observation, attempt: Attempt) -> tuple[AskForSave, ...]:
    """What passes a request for a checkpoint on to the workers of a running gang, as long as they do not know of it."""
    value, before = asked(observation, names.CHECKPOINT_NOW), observation.job.status.requests or Requests()
    found = failure.beating(observation, attempt)
    if value is None or value == before.checkpoint_saved or found is None or observation.results.problem is not None:
        return ()
    passed_on = observation.results.asked == value or (before.checkpoint, before.attempt) == (value, attempt.number)
    if passed_on or found.heartbeat.request == value or found.heartbeat.phase in ("finished", "failed"):
        return ()
    return (AskForSave(attempt.number, value),)


def describe(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> TrainingJobStatus:
    """The status with all that was acted on."""
    return _describe_checkpoint(observation, attempt, _describe_restart(observation, attempt, status))


def _describe_checkpoint(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> TrainingJobStatus:
    value, before = asked(observation, names.CHECKPOINT_NOW), status.requests or Requests()
    if value is None or value == before.checkpoint_saved:
        return status
    found, catalog = failure.beating(observation, attempt), own(observation)
    at = found.heartbeat.request_step if found is not None and found.heartbeat.request == value else None
    saved = at is not None and catalog is not None and _has(catalog, attempt.number, at)
    over = status.phase is not None and (status.phase.finished or status.phase is Phase.SUSPENDED)
    update: dict[str, object] = {}
    if saved or over:  # a job that rests has saved what there was
        update = {"checkpoint": value, "checkpoint_saved": value, "checkpoint_saved_time": observation.now}
    elif observation.results.asked == value:
        update = {"checkpoint": value, "attempt": attempt.number}
    return status.model_copy(update={"requests": before.model_copy(update=update)}) if update else status


def _has(catalog: Catalog, attempt: int, step: int) -> bool:
    return any(entry.attempt == attempt and entry.step >= step for entry in catalog.checkpoints)


def _describe_restart(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> TrainingJobStatus:
    """A job without a gang starts afresh by itself, at once."""
    value = _restart_wanted(observation, status)
    over = status.phase is not None and status.phase.finished
    if value is None or (attempt.launched and not attempt.ended and not over):
        return status
    status = _acknowledged(status, value)
    if status.restarts is not None and status.restarts.next_time is not None:
        restarts = status.restarts.model_copy(update={"next_time": None})
        status = status.model_copy(update={"restarts": restarts})
    return status


def _restart_wanted(observation: Observation, status: TrainingJobStatus) -> str | None:
    value = asked(observation, names.RESTART_NOW)
    return value if value != (status.requests or Requests()).restart else None


def _acknowledged(status: TrainingJobStatus, value: str) -> TrainingJobStatus:
    before = status.requests or Requests()
    return status.model_copy(update={"requests": before.model_copy(update={"restart": value})})
