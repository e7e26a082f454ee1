"""Saves that go on beside training, one at a time, in a thread that is kept from one to the next.

Whoever starts a thread waits until it runs, and then for the interpreter, which the thread is loath to give back: ten
milliseconds in which training stands still.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from everstep.catalog.store.threads import DaemonPool

T = TypeVar("T")


def flying_thread(name: str = "everstep-save") -> DaemonPool:
    """That of flights which follow each other."""
    return DaemonPool(1, name)


class Flight(Generic[T]):
    """`work` ends in an exchange between the ranks, so that its outcome is the same on all of them.

    The thread does not keep the process: what cannot be awaited any more at its end is abandoned, which costs a save
    that was not committed and nothing else.
    """

    def __init__(self, step: int, work: Callable[[], T], thread: DaemonPool) -> None:
        """`thread`: see `flying_thread`. Flights that share it follow each other: `work` begins when the last is
        over."""
        self.step = step
        self._outcome = thread.submit(work)

    @property
    def landed(self) -> bool:
        """Whether it is over on this rank; the others may take a moment more."""
        return self._outcome.done()

    def wait(self, seconds: float | None = None) -> T:
        """Its result, or its error. Raises TimeoutError after `seconds`."""
        return self._outcome.result(seconds)
