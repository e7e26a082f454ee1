"""activeDeadlineSeconds: how long the job may be active, restarts included and suspensions excluded."""

from __future__ import annotations

from datetime import datetime

from everstep_operator.api import TrainingJobStatus
from everstep_operator.reconcile.observation import Observation


def active_seconds(status: TrainingJobStatus, now: datetime) -> float:
    running = (now - status.active_since).total_seconds() if status.active_since else 0.0
    return (status.active_seconds or 0) + max(0.0, running)


def left(observation: Observation) -> float | None:
    """Seconds until the deadline, negative past it; None without one, and while the job is not active."""
    limit, status = observation.job.spec.active_deadline_seconds, observation.job.status
    if limit is None or status.active_since is None:
        return None
    return limit - active_seconds(status, observation.now)


def start(status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    return status if status.active_since else status.model_copy(update={"active_since": now})


def stop(status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    if status.active_since is None:
        return status
    return status.model_copy(update={"active_seconds": int(active_seconds(status, now)), "active_since": None})
