"""What a rank will need most likely, fetched while it is being found out what it needs.

From the manifest to the first range that a plan asks for lie a round trip and the planning itself: a quarter of a
second in which the way to storage would rest. All that is stored is needed by somebody, so each rank fetches the front
of another file at once: with as many ranks, sharded in the same way, all of it is the rank's own. A plan that knows
what was begun has the rank hand others what it has for them (`dividing`); from then on nothing more is begun here.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from bisect import bisect_right
from collections.abc import Callable, Container, Sequence
from concurrent.futures import Future
from itertools import accumulate, count

from everstep.catalog.store.threads import begin
from everstep.checkpoint.saving.layout import shard_name

log = logging.getLogger("everstep")

STEPS = tuple(size << 20 for size in (4, 4, 8, 16, 16, 16))
"""Bytes of each request: large ones need fewer, small ones are here before the plan is made. Their sum is what one rank
holds: in half a second eight of them fetch as much by 10 Gbit/s."""
FEW_STEPS = STEPS[:3]
"""Where others may need the bytes, who have to be handed them: what 1 Gbit/s lets through in an eighth of a second."""
THREADS = 2
"""Few: what the plan is made of comes by the same way."""


def front(names: Container[str], saved: int, rank: int, ranks: int) -> str | None:
    """The file, of those of a save by `saved` ranks, of which a rank fetches the front: another one for each of
    `ranks`, by the writer that lies where it lies itself. None where there are not so many."""
    writer = rank * saved // ranks
    first, end = -(-writer * ranks // saved), -(-(writer + 1) * ranks // saved)
    files = next(number for number in count() if shard_name(writer, number) not in names)
    number = (rank - first) * files // (end - first)
    taken = rank > first and number == (rank - first - 1) * files // (end - first)
    return None if taken or not files else shard_name(writer, number)


def few_steps(share: int) -> list[int]:
    """Those of a rank whose even share of all is so many bytes: up to a quarter of it, so that what is left to fetch
    can still be dealt out evenly."""
    return [step for step, end in zip(FEW_STEPS, accumulate(FEW_STEPS), strict=True) if end <= share // 4]


class HeadStart:
    """Fetches a file's front in steps, beside everything else. What fails is left to whoever needs it."""

    def __init__(self, read: Callable[[int, memoryview], int], size: int, steps: Sequence[int]) -> None:
        """`read`: fill memory from a place of the file, which has `size` bytes; returns how many there were."""
        self._read = read
        self._ends = [min(end, size) for end in accumulate(steps)]
        self._ends = self._ends[: bisect_right(self._ends, size - 1) + 1]
        self._most = len(self._ends)
        self._begun: list[Future[memoryview]] = []
        self._lock = threading.Lock()
        with contextlib.suppress(RuntimeError):  # there is no room for a thread: then there is no head start
            for number in range(min(THREADS, self._most)):
                begin(self._work, f"everstep-ahead-{number}")

    def stop(self) -> int:
        """Begin nothing any more. Returns up to where bytes of the file are here, or on their way."""
        with self._lock:
            self._most = min(self._most, len(self._begun))
            return self._ends[self._most - 1] if self._most else 0

    def copy(self, start: int, into: memoryview) -> int:
        """Fill the front of `into` with the file's bytes from `start` on, as far as they are here or on their way.

        Returns how many. They are as storage gave them: nobody has looked at them.
        """
        done = 0
        while done < len(into):
            number = bisect_right(self._ends, start + done)
            if number >= len(self._begun):
                break
            found = self._begun[number].result()[start + done - self._start(number) :][: len(into) - done]
            if not found:
                break
            into[done : done + len(found)] = found
            done += len(found)
        return done

    def _start(self, number: int) -> int:
        return self._ends[number - 1] if number else 0

    def _work(self) -> None:
        while True:
            with self._lock:
                number = len(self._begun)
                if number >= self._most:
                    return
                future: Future[memoryview] = Future()
                self._begun.append(future)
            start, found = self._start(number), memoryview(b"")
            try:
                memory = memoryview(bytearray(self._ends[number] - start))
                found = memory[: self._read(start, memory)]
            except Exception:
                log.debug("nothing was fetched ahead from byte %d on", start, exc_info=True)
            finally:
                if len(found) < self._ends[number] - start:  # before anybody hears of it
                    with self._lock:
                        self._most = min(self._most, number)
                future.set_result(found)
