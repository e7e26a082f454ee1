"""A save that goes on beside training, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Flight(Generic[T]):
    """`work` ends in an exchange between the ranks, so that its outcome is the same on all of them.

    The thread does not keep the process: what cannot be awaited any more at its end is abandoned, which costs a save
    that was not committed and nothing else.
    """

    def __init__(self, step: int, work: Callable[[], T]) -> None:
        self.step = step
        self._outcome: Future[T] = Future()
        threading.Thread(target=self._run, args=(work,), name=f"everstep-save-{step}", daemon=True).start()

    @property
    def landed(self) -> bool:
        """Whether it is over on this rank; the others may take a moment more."""
        return self._outcome.done()

    def wait(self, seconds: float | None = None) -> T:
        """Its result, or its error. Raises TimeoutError after `seconds`."""
        return self._outcome.result(seconds)

    def _run(self, work: Callable[[], T]) -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - whoever waits hears of it
            self._outcome.set_exception(error)
        else:
            self._outcome.set_result(result)
