"""What a rank most likely needs, fetched while it is not known yet what it needs.

From the claim to the first range that a plan asks for lie several round trips and the planning itself: a third of a
second in which the way to storage would rest. The front of the file that the rank of the same number has written is a
good guess: with as many ranks and the same mesh all of it is needed here. A plan that knows what was begun has the rank
fetch for others what it has already (`dividing`), and stops what goes on.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import Future
from itertools import accumulate

from everstep.catalog.store.threads import begin

log = logging.getLogger("everstep")

STEPS = tuple(size << 20 for size in (4, 4, 8, 16, 16, 16))
"""Bytes of each request: where the guess is wrong, few are under way when that shows. Their sum is what one rank holds:
in a third of a second eight of them fetch as much by 10 Gbit/s."""
STARTS = tuple(accumulate(STEPS, initial=0))
THREADS = 2
"""Few: what the plan is made of comes by the same way."""


class HeadStart:
    """Fetches a file's front in steps, beside everything else. What fails is left to whoever needs it."""

    def __init__(self, read: Callable[[int, memoryview], int]) -> None:
        """`read`: fill memory from a place of the file; returns how many bytes there were."""
        self._read = read
        self._most = len(STEPS)
        self._begun: list[Future[memoryview]] = []
        self._lock = threading.Lock()
        for number in range(THREADS):
            begin(self._work, f"everstep-ahead-{number}")

    def stop(self) -> int:
        """Begin nothing any more. Returns up to where bytes of the file are here, or on their way."""
        with self._lock:
            self._most = len(self._begun)
            return STARTS[self._most]

    def copy(self, start: int, into: memoryview) -> int:
        """Fill the front of `into` with the file's bytes from `start` on, as far as they are here or on their way.

        Returns how many. They are as storage gave them: nobody has looked at them.
        """
        done = 0
        while done < len(into):
            number = bisect_right(STARTS, start + done) - 1
            if number >= len(self._begun):
                break
            found = self._begun[number].result()[start + done - STARTS[number] :][: len(into) - done]
            if not found:
                break
            into[done : done + len(found)] = found
            done += len(found)
        return done

    def _work(self) -> None:
        while True:
            with self._lock:
                number = len(self._begun)
                if number >= self._most:
                    return
                future: Future[memoryview] = Future()
                self._begun.append(future)
            memory = memoryview(bytearray(STEPS[number]))
            count = 0
            try:
                count = self._read(STARTS[number], memory)
            except Exception:
                log.debug("nothing was fetched ahead from byte %d on", STARTS[number], exc_info=True)
            future.set_result(memory[:count])
            if count < len(memory):
                self.stop()
