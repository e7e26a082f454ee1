"""Saves that failed, and when that ends the run: storage that stays away costs saves, and training goes on, unless the
job says for how long it may."""

from __future__ import annotations

import time
from dataclasses import dataclass

from everstep.errors import CheckpointError, SavesFailedError


@dataclass
class SaveFailures:
    limit: float | None = None
    """Seconds of failures, one after the other, that the run may go on; None: any."""
    total: int = 0
    in_a_row: int = 0
    """Since the last commit."""
    since: float | None = None
    """When the first of these was heard of, by the monotonic clock."""
    last: str = "the other ranks have heard why"

    def count(self, step: int, error: CheckpointError) -> None:
        self.total += 1
        self.in_a_row += 1
        self.last = f"step {step} was not saved: {error}"
        if self.since is None:
            self.since = time.monotonic()

    def committed(self) -> None:
        self.in_a_row, self.since = 0, None

    @property
    def seconds(self) -> float:
        return 0.0 if self.since is None else time.monotonic() - self.since

    @property
    def overdue(self) -> bool:
        """Whether it has gone on for too long, by this rank's clock."""
        return self.limit is not None and self.since is not None and self.seconds >= self.limit

    def error(self) -> SavesFailedError:
        return SavesFailedError(
            f"no save has succeeded for {self.seconds:.0f} s, {self.in_a_row} in a row have failed, and "
            f"saveTimeoutSeconds is {self.limit or 0:g}; {self.last}"
        )
