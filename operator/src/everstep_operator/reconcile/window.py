"""Which counted restarts are held against maxRestarts: all, or those of the last windowSeconds."""

from __future__ import annotations

from datetime import datetime, timedelta

from everstep_operator.api.failure import RECENT_LIMIT, FailurePolicy
from everstep_operator.api.status import Restarts


def used(policy: FailurePolicy, restarts: Restarts, now: datetime) -> int:
    """How many there were."""
    return restarts.counted if policy.window_seconds is None else len(_within(policy, restarts, now))


def record(policy: FailurePolicy, restarts: Restarts, now: datetime, counted: bool) -> list[datetime]:
    """`restarts.recent` after one more restart; nothing without a window."""
    recent = _within(policy, restarts, now)
    if counted and policy.window_seconds is not None:
        recent.append(now)
    return recent[-RECENT_LIMIT:]


def _within(policy: FailurePolicy, restarts: Restarts, now: datetime) -> list[datetime]:
    if policy.window_seconds is None:
        return []
    return [time for time in restarts.recent if now - time < timedelta(seconds=policy.window_seconds)]
