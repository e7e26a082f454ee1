"""What all ranks decide together at each step boundary, one step late so that nobody waits for anybody."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from everstep.checkpoint.gang import Gang, PendingSum


@dataclass(frozen=True)
class Agreed:
    """The outcome of one vote: the same on all ranks."""

    terminate: bool = False
    """Some rank has got SIGTERM."""
    due: bool = False
    """By rank 0's clock it is time to save."""
    fenced: bool = False
    """Another worker group has taken over."""
    finish: bool = False
    """Some rank wants to stop."""
    publish: bool = False
    """By rank 0's clock it is time to publish weights."""
    local: bool = False
    """By rank 0's clock it is time to save to the local tier."""
    unsaved: bool = False
    """By rank 0's clock saves have failed for too long."""


class Agreement:
    """Votes and counters travel in one sum."""

    def __init__(self, gang: Gang) -> None:
        self._gang = gang
        self._pending: PendingSum | None = None
        self._last = Agreed()

    def vote(self, flags: Agreed, counts: tuple[int, int]) -> None:
        """Start a vote; the one before must be settled. `counts`: this rank's new samples and tokens."""
        self._pending = self._gang.start_sum([*(int(flag) for flag in astuple(flags)), *counts])

    def settle(self) -> tuple[Agreed, tuple[int, int]]:
        """The outcome of the last vote, and the counts of all ranks that were not handed out before."""
        if self._pending is None:
            return self._last, (0, 0)
        *votes, samples, tokens = self._pending.wait()
        self._pending = None
        self._last = Agreed(*(count > 0 for count in votes))
        return self._last, (samples, tokens)
