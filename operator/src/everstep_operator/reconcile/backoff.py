"""How long to wait before an attempt that follows others which committed nothing. After progress: not at all."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from everstep_operator.api import TrainingJobStatus
from everstep_operator.api.failure import Backoff

JITTER = 0.2


def delay(policy: Backoff, without_progress: int, seed: str) -> float:
    """Seconds. Doubles from attempt to attempt; the jitter is made of `seed`, so that deciding twice agrees."""
    if without_progress <= 0:
        return 0.0
    # 2**30 times one second is longer than any maximum; more would overflow a float
    full = min(float(policy.max_seconds), policy.initial_seconds * 2.0 ** min(without_progress - 1, 30))
    return full * (1 - JITTER * draw(seed))


def bounded(policy: Backoff, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """The status whose back-off ends within the maximum: the clock of whoever wrote it may have been ahead of ours."""
    restarts, latest = status.restarts, now + timedelta(seconds=policy.max_seconds)
    if restarts is None or restarts.next_time is None or restarts.next_time <= latest:
        return status
    return status.model_copy(update={"restarts": restarts.model_copy(update={"next_time": latest})})


def draw(seed: str) -> float:
    """From 0 to 1, the same for the same seed."""
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big") / 2**32
