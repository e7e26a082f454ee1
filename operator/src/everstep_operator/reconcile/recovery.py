"""How long the last recovery took, phase by phase, and what it lost."""

from __future__ import annotations

from datetime import datetime

from everstep_operator.api import TrainingJobStatus
from everstep_operator.api.status import Recovery, RecoverySeconds
from everstep_operator.reconcile import failure
from everstep_operator.reconcile.attempt import Attempt
from everstep_operator.reconcile.classify import Cause
from everstep_operator.reconcile.observation import Observation


def begin(observation: Observation, attempt: Attempt, cause: Cause) -> Recovery:
    """A fault has just been noticed."""
    detect = _seconds(cause.fault, observation.now) if cause.fault else None
    return Recovery(detected=observation.now, attempt=attempt.number, seconds=RecoverySeconds(detect=detect))


def drop(status: TrainingJobStatus) -> TrainingJobStatus:
    """Stop measuring a recovery that something else interrupts, such as a suspension."""
    found = status.recovery
    if found is None or found.attempt is None or (found.seconds is not None and found.seconds.total is not None):
        return status
    return status.model_copy(update={"recovery": found.model_copy(update={"attempt": None})})


def measure(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> TrainingJobStatus:
    """The status with the phases that have come to their end. `status` already tells of the attempt's pods."""
    found, gang = status.recovery, status.gang
    if found is None or found.attempt is None or found.detected is None or gang is None or gang.started is None:
        return status
    if attempt.ended or not attempt.launched or found.attempt >= attempt.number:
        return status
    seconds = found.seconds or RecoverySeconds()
    lost = found.lost_steps
    if seconds.teardown is None:
        seconds = seconds.model_copy(update={"teardown": _seconds(found.detected, gang.started)})
        lost = _lost_steps(status, found.attempt)
    if seconds.start is None and gang.running is not None:
        whole = _seconds(gang.started, gang.running)
        bound = [
            c.since for pod in attempt.pods if (c := pod.condition("PodScheduled")) and c.since and c.status == "True"
        ]
        schedule = min(whole, _seconds(gang.started, max(bound))) if bound else None
        seconds = seconds.model_copy(update={"schedule": schedule, "start": round(whole - (schedule or 0), 2)})
    if seconds.total is None and gang.running is not None:
        beat = failure.beating(observation, attempt)
        if beat is not None and beat.heartbeat.first_step is not None:
            load = min(_seconds(gang.running, beat.heartbeat.first_step), _seconds(gang.running, observation.now))
            total = _seconds(found.detected, gang.running) + load + (seconds.detect or 0)
            seconds = seconds.model_copy(update={"load": load, "total": round(total, 2)})
    return status.model_copy(update={"recovery": found.model_copy(update={"seconds": seconds, "lost_steps": lost})})


def _lost_steps(status: TrainingJobStatus, failed: int) -> int | None:
    ended = next((entry for entry in status.history if entry.attempt == failed), None)
    if ended is None or ended.to_step is None:
        return None
    return max(0, ended.to_step - (status.resumed_from.step if status.resumed_from else 0))


def _seconds(start: datetime, end: datetime) -> float:
    """Stamps of several clocks, some of whole seconds: never negative."""
    return round(max(0.0, (end - start).total_seconds()), 2)
