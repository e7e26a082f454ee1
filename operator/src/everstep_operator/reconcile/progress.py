"""How far the training is, for people: from the heartbeat, and written no more often than it is worth."""

from __future__ import annotations

from datetime import datetime, timedelta

from everstep.catalog import Heartbeat
from everstep_operator.api import TrainingJobStatus
from everstep_operator.api.common import MAX_STEP
from everstep_operator.api.status import Progress
from everstep_operator.reconcile import failure
from everstep_operator.reconcile.attempt import Attempt
from everstep_operator.reconcile.observation import Observation

_UNTOLD = ("starting", "restoring")
_MOST_METRICS = 32
_FAR = timedelta(days=3650)
_SLACK = 5.0
"""Seconds by which API servers may differ."""


def describe(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> TrainingJobStatus:
    """The status with the step that the attempt's workers report; unchanged where they report nothing new."""
    if attempt.ended:
        return _caught_up(attempt, status, observation.now)
    found = failure.beating(observation, attempt)
    if found is None or found.heartbeat.phase in _UNTOLD:
        return status
    if found.heartbeat.phase == "failed" and found.heartbeat.first_step is None:
        return status  # it never got to a step
    beat, before = found.heartbeat, status.progress or Progress()
    fresh = Progress(
        summary=summary(beat.step, beat.total_steps),
        step=beat.step,
        total_steps=beat.total_steps if beat.total_steps is not None and beat.total_steps <= MAX_STEP else None,
        from_step=before.from_step if before.from_step is not None else (beat.resumed_step or 0),
        updated=before.updated,
        estimated_completion=before.estimated_completion,
        metrics=_metrics(beat),
    )
    if fresh == before:
        return status
    changes = {"updated": observation.now, "estimated_completion": _estimate(beat, observation.now)}
    return status.model_copy(update={"progress": fresh.model_copy(update=changes)})


def _caught_up(attempt: Attempt, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """What an attempt commits while it stops is above the last step that was told of it."""
    last, told = status.last_checkpoint, status.progress
    if last is None or last.attempt != attempt.number or told is None or told.step is None or told.step >= last.step:
        return status
    changes = {"summary": summary(last.step, told.total_steps), "step": last.step, "updated": now}
    return status.model_copy(update={"progress": told.model_copy(update=changes)})


def summary(step: int, total: int | None) -> str:
    if not total:
        return f"step {step}"
    return f"{step}/{total} ({min(100, 100 * step // total)}%)"


def _estimate(beat: Heartbeat, now: datetime) -> datetime | None:
    if beat.total_steps is None or not beat.seconds_per_step or beat.phase == "finished":
        return None
    left = max(0, beat.total_steps - beat.step) * beat.seconds_per_step
    return now + timedelta(seconds=left) if left < _FAR.total_seconds() else None


def _metrics(beat: Heartbeat) -> dict[str, str] | None:
    named = {name: f"{value:.4g}" for name, value in beat.metrics.items() if 0 < len(name) <= 63}
    return dict(sorted(named.items())[:_MOST_METRICS]) or None


def held_back(observation: Observation, status: TrainingJobStatus) -> tuple[TrainingJobStatus, float | None]:
    """The stored status where nothing but progress has changed, and that too little ago; with the seconds to wait."""
    before = observation.job.status
    if status == before or before.progress is None or before.progress.updated is None:
        return status, None
    slow = {"progress": before.progress, "checkpoints": before.checkpoints}
    if status.model_copy(update=slow) != before:
        return status, None
    left = observation.progress_seconds - (observation.now - before.progress.updated).total_seconds()
    # Far more than the whole pause is left where a clock was set back: that would hold it for as long.
    return (before, left) if 0 < left <= observation.progress_seconds + _SLACK else (status, None)
