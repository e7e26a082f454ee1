"""The share of active time that went into steps which were kept: committed steps by the time that one takes.

It is computed when a checkpoint is committed and when the job ends, so that it does not change by itself.
"""

from __future__ import annotations

from everstep_operator.api import TrainingJobStatus
from everstep_operator.reconcile import deadline
from everstep_operator.reconcile.observation import Observation


def describe(observation: Observation, status: TrainingJobStatus) -> TrainingJobStatus:
    before = observation.job.status.last_checkpoint
    last, progress, beat = status.last_checkpoint, status.progress, observation.stored.heartbeat
    if last is None or progress is None or beat is None or not beat.heartbeat.seconds_per_step:
        return status
    if before is not None and before.location == last.location:
        return status
    active = deadline.active_seconds(status, observation.now)
    if active <= 0:
        return status
    kept = max(0, last.step - (progress.from_step or 0)) * beat.heartbeat.seconds_per_step
    return status.model_copy(update={"goodput": f"{min(100, round(100 * kept / active))}%"})
