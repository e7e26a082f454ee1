"""Saves that failed, and when that ends the run: storage that stays away costs saves, and training goes on, unless the
job says for how long it may."""

from __future__ import annotations

import time
from dataclasses import dataclass

from everstep.errors import CheckpointError, SavesFailedError


@dataclass
class SaveFailures:
    limit: float | None = None
    """Seconds of failures, one after the other, after which the next one ends the run; None: none does."""
    total: int = 0
    in_a_row: int = 0
    """Since the last commit."""
    since: float | None = None
    """When the first of these was heard of, by the monotonic clock."""

    def count(self) -> None:
        self.total += 1
        self.in_a_row += 1
        if self.since is None:
            self.since = time.monotonic()

    def committed(self) -> None:
        self.in_a_row, self.since = 0, None

    def check(self, step: int, error: CheckpointError) -> None:
        """Raises SavesFailedError where it has gone on for too long. `error`: that of the last save, of `step`."""
        if self.limit is None or self.since is None:
            return
        seconds = time.monotonic() - self.since
        if seconds >= self.limit:
            raise SavesFailedError(
                f"no save has succeeded for {seconds:.0f} s, {self.in_a_row} in a row have failed, and "
                f"saveTimeoutSeconds is {self.limit:g}; step {step} was not saved: {error}"
            ) from error
