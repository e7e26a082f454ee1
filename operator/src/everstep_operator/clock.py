"""The API server's clock, read off its answers.

Stamps that decisions compare come from it (a pod's creation) or were written by an operator that may have run on
another node than this one: with one clock for all of them, neither an operator's clock that is off nor its restart
elsewhere makes a start look late, or a deadline far.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

WHOLE_SECOND = 1.0
"""What the Date of an answer leaves out."""
STEP = 5.0
"""Seconds by which no clock drifts between two answers."""
DOUBT = 30.0
"""Seconds for which all answers have to tell of a step until it is believed. One API server of several whose clock is
off, or a proxy with a clock of its own, must not end a job by its deadline."""


class ServerClock:
    """This machine's own time until an answer contradicts it; from then on the server's, carried on monotonically."""

    def __init__(self, wall: Callable[[], float] = time.time, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ahead = wall() - clock()
        self._open = float("inf")
        """Seconds by which the best answer so far leaves the server's clock open."""
        self._doubted: float | None = None

    def now(self) -> datetime:
        """Aware, UTC."""
        return datetime.fromtimestamp(0, UTC) + timedelta(seconds=self._clock() + self._ahead)

    def asks(self) -> float:
        """When a request goes out, for `told`."""
        return self._clock()

    def told(self, date: str | None, asked: float) -> None:
        """An answer to what was asked at `asked` came in just now with this Date; one that is no date tells nothing."""
        try:
            stamp = parsedate_to_datetime(date or "")
            second = stamp.astimezone(UTC).timestamp()
        except (ValueError, OverflowError, OSError):
            return
        # It was made at some moment between `asked` and now, within the second that it names.
        least, most = second - self._clock(), second + WHOLE_SECOND - asked
        ahead = min(max(self._ahead, least), most)
        step = abs(ahead - self._ahead) > self._open + STEP
        if step and not self._insists():
            return
        self._open = most - least if step else min(self._open, most - least)
        self._ahead, self._doubted = ahead, None

    def _insists(self) -> bool:
        now = self._clock()
        if self._doubted is None:
            self._doubted = now
        return now - self._doubted >= DOUBT
