"""How long the last recovery took, phase by phase, and what it lost."""

from __future__ import annotations

from datetime import datetime

from everstep_operator.api import TrainingJobStatus
from everstep_operator.api.common import MAX_SECONDS, MAX_STEP
from everstep_operator.api.status import Recovery, RecoverySeconds
from everstep_operator.reconcile import failure
from everstep_operator.reconcile.attempt import Attempt, own
from everstep_operator.reconcile.classify import Cause
from everstep_operator.reconcile.observation import Observation


def begin(observation: Observation, attempt: Attempt, cause: Cause) -> Recovery:
    """A fault has just been noticed."""
    detect = _seconds(cause.fault, observation.now) if cause.fault else None
    return Recovery(detected=observation.now, attempt=attempt.number, seconds=RecoverySeconds(detect=detect))


def begin_in_place(observation: Observation, attempt: Attempt, fault: datetime | None, resumed: int) -> Recovery:
    """Workers that were restarted in place have claimed just now. `fault`: when one of the former died, if its log
    tells; `resumed`: the step from which they go on."""
    catalog, beat = own(observation), failure.beating(observation, attempt)
    claim = catalog.claim if catalog is not None else None
    seconds = RecoverySeconds()
    if claim is not None and fault is not None:
        seconds = RecoverySeconds(restart=_seconds(fault, claim.at))
    before = observation.stored.former
    if beat is not None and claim is not None and beat.heartbeat.epoch < claim.epoch:
        before = beat.heartbeat
    lost = None if before is None else _lost(before.step, resumed)
    return Recovery(detected=observation.now, attempt=attempt.number, lost_steps=lost, seconds=seconds)


def drop(status: TrainingJobStatus) -> TrainingJobStatus:
    """Stop measuring a recovery that something else interrupts, such as a suspension."""
    found = status.recovery
    if found is None or found.attempt is None or found.is_over:
        return status
    return status.model_copy(update={"recovery": found.model_copy(update={"attempt": None})})


def measure(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> TrainingJobStatus:
    """The status with the phases that have come to their end. `status` already tells of the attempt's pods."""
    found, gang = status.recovery, status.gang
    if found is None or found.attempt is None or found.detected is None or gang is None or gang.started is None:
        return status
    if attempt.ended or not attempt.launched or found.is_over:
        return status
    if found.attempt == attempt.number:
        return _measure_in_place(observation, attempt, status, found)
    if found.attempt > attempt.number:
        return status
    seconds = found.seconds or RecoverySeconds()
    lost = _lost_steps(status, found.attempt)  # anew each time: the claim may yet fall back to an older checkpoint
    if seconds.teardown is None:
        seconds = seconds.model_copy(update={"teardown": _seconds(found.detected, gang.started)})
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
            seconds = seconds.model_copy(update={"load": load, "total": _bounded(total)})
    return status.model_copy(update={"recovery": found.model_copy(update={"seconds": seconds, "lost_steps": lost})})


def _measure_in_place(
    observation: Observation, attempt: Attempt, status: TrainingJobStatus, found: Recovery
) -> TrainingJobStatus:
    catalog, beat = own(observation), failure.beating(observation, attempt)
    claim, seconds = catalog.claim if catalog is not None else None, found.seconds or RecoverySeconds()
    if claim is None or beat is None or beat.heartbeat.first_step is None:
        return status
    if beat.heartbeat.epoch != claim.epoch:
        return status
    load = _seconds(claim.at, beat.heartbeat.first_step)
    total = None if seconds.restart is None else _bounded(seconds.restart + load)
    seconds, lost = seconds.model_copy(update={"load": load, "total": total}), found.lost_steps
    if beat.heartbeat.former_step is not None:  # beats of the former group, if any was seen, are older
        lost = max(lost or 0, _lost(beat.heartbeat.former_step, status.resumed_from.step if status.resumed_from else 0))
    return status.model_copy(update={"recovery": found.model_copy(update={"seconds": seconds, "lost_steps": lost})})


def _lost_steps(status: TrainingJobStatus, failed: int) -> int | None:
    ended = next((entry for entry in status.history if entry.attempt == failed), None)
    if ended is None or ended.to_step is None:
        return None
    return _lost(ended.to_step, status.resumed_from.step if status.resumed_from else 0)


def _lost(reached: int, resumed: int) -> int:
    return min(MAX_STEP, max(0, reached - resumed))


def _seconds(start: datetime, end: datetime) -> float:
    """Stamps of several clocks, some of whole seconds, some a tenant's: never negative, and what a status can hold."""
    return _bounded(max(0.0, (end - start).total_seconds()))


def _bounded(seconds: float) -> float:
    return round(min(seconds, MAX_SECONDS), 2)
