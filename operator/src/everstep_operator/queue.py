"""The work queue: which job is looked at next, and when it is looked at again.

A key stands in it once however often it is added, is worked on by one worker at a time, and comes back when its pass
asked for it, after a growing pause when its pass failed, and at the latest after the resync period. `Schedule` holds
the rules and no clock; `WorkQueue` adds the event loop.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds: the back-off of a key whose passes fail, and the longest time that no key is looked at."""

    first: float = 0.2
    most: float = 60.0
    floor: float = 1.0
    """A change of the object shortens the back-off to this, so that our own writes cannot make a failing pass spin."""
    resync: float = 600.0
    jitter: float = 0.1

    def after_failures(self, failures: int) -> float:
        return min(self.most, self.first * 2.0 ** min(failures - 1, 30))


@dataclass(slots=True)
class _Item:
    due: float
    """When it is to be worked on next; infinity while that is not known yet."""
    running: bool = False
    dirty: bool = False
    """Added while it was being worked on."""
    failures: int = 0
    not_before: float = 0.0
    added: float = 0.0
    """When somebody last asked for it."""


class Schedule(Generic[K]):
    """When each key is due. All times are seconds of one monotonic clock that the caller reads."""

    def __init__(self, pauses: Pauses | None = None, rng: Callable[[], float] = random.random) -> None:
        self._pauses = pauses or Pauses()
        self._rng = rng
        self._items: dict[K, _Item] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._items)

    def ready(self, now: float) -> int:
        """How many keys are due and wait for a worker."""
        return sum(not item.running and item.due <= now for item in self._items.values())

    def add(self, key: K, now: float, delay: float = 0.0) -> None:
        """Work on a key in `delay` seconds, or earlier if it is due earlier."""
        item = self._items.get(key)
        if item is None:
            self._items[key] = item = _Item(due=float("inf"))
        item.added = now
        if item.running:
            if delay <= 0:
                item.dirty = True
            else:
                item.due = min(item.due, now + delay)
            return
        due = max(now + delay, item.not_before)
        if due < item.due:
            self._set(key, item, due)

    def pop(self, now: float) -> K | None:
        """The key that has been due for longest, which its caller must give back with `done`; None if none is due."""
        while self._heap:
            due, _, key = self._heap[0]
            if not self._stands(due, key):
                heapq.heappop(self._heap)  # overtaken by a later decision about the same key
                continue
            if due > now:
                return None
            heapq.heappop(self._heap)
            item = self._items[key]
            item.running, item.due = True, float("inf")
            return key
        return None

    def next_due(self) -> float | None:
        """When `pop` will have something, unless keys are added before."""
        while self._heap:
            due, _, key = self._heap[0]
            if self._stands(due, key):
                return due
            heapq.heappop(self._heap)
        return None

    def done(self, key: K, now: float, again_after: float | None = None) -> None:
        """A pass succeeded. `again_after` replaces earlier wishes; None leaves the key to changes and the resync."""
        item = self._items[key]
        item.failures, item.not_before = 0, 0.0
        resync = self._pauses.resync * (1 + self._pauses.jitter * (2 * self._rng() - 1))
        self._finish(key, item, now, min(resync, resync if again_after is None else max(0.0, again_after)))

    def failed(self, key: K, now: float) -> float:
        """A pass failed; returns the pause until the next."""
        item = self._items[key]
        item.failures += 1
        pause = self._pauses.after_failures(item.failures)
        item.not_before = now + min(pause, self._pauses.floor)
        self._finish(key, item, now, pause)
        return pause

    def forget(self, key: K) -> None:
        """A pass found that the object is gone. A key added meanwhile stays."""
        item = self._items.pop(key)
        if item.dirty:
            self._items[key] = fresh = _Item(due=float("inf"), added=item.added)
            self._set(key, fresh, item.added)

    def forget_absent(self, present: Iterable[K], began: float) -> list[K]:
        """Keys that no pass looks at: those of a list that began then are what exists. A key that was added since, or
        is being worked on, stays. Returns what was forgotten."""
        kept = set(present)
        gone = [key for key, item in self._items.items() if key not in kept and not item.running and item.added < began]
        for key in gone:
            del self._items[key]
        return gone

    def _finish(self, key: K, item: _Item, now: float, delay: float) -> None:
        due = min(now + delay, item.due)
        if item.dirty:
            due = max(now, item.not_before)
        item.running = item.dirty = False
        self._set(key, item, due)

    def _set(self, key: K, item: _Item, due: float) -> None:
        item.due = due
        self._pushed += 1
        heapq.heappush(self._heap, (due, self._pushed, key))
        if len(self._heap) > 64 + 4 * len(self._items):  # mostly overtaken: distant resyncs of keys that are seen often
            self._heap = [entry for entry in self._heap if self._stands(entry[0], entry[2])]
            heapq.heapify(self._heap)

    def _stands(self, due: float, key: K) -> bool:
        item = self._items.get(key)
        return item is not None and not item.running and item.due == due


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass over one key asks for."""

    again_after: float | None = None
    gone: bool = False


Handler = Callable[[K], Awaitable[Outcome]]


@dataclass(slots=True)
class WorkQueue(Generic[K]):
    """Keys in, passes out, at most `concurrency` at once and never two for one key."""

    schedule: Schedule[K] = field(default_factory=Schedule)
    concurrency: int = 16
    clock: Callable[[], float] = time.monotonic
    on_error: Callable[[K, Exception, float], None] | None = None
    """Told of each failed pass, with the pause that follows."""
    on_taken: Callable[[float], None] | None = None
    """Told of each key that a worker takes, with the seconds for which it was due."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _closed: bool = False

    def add(self, key: K, delay: float = 0.0) -> None:
        self.schedule.add(key, self.clock(), delay)
        self._changed.set()

    def ready(self) -> int:
        """How many keys are due and wait for a worker."""
        return self.schedule.ready(self.clock())

    def forget_absent(self, present: Iterable[K], began: float) -> list[K]:
        """For a process whose workers do not run: see `Schedule.forget_absent`."""
        return self.schedule.forget_absent(present, began)

    def close(self) -> None:
        """Begin no more passes; `run` returns when those under way have ended."""
        self._closed = True
        self._changed.set()

    async def run(self, handle: Handler[K], permitted: Callable[[], Awaitable[None]] | None = None) -> None:
        """Work until closed. `permitted` is awaited before each key is taken: until the Lease is held, keys wait."""
        async with asyncio.TaskGroup() as group:
            for number in range(self.concurrency):
                group.create_task(self._work(handle, permitted), name=f"worker-{number}")

    async def _work(self, handle: Handler[K], permitted: Callable[[], Awaitable[None]] | None) -> None:
        while True:
            if permitted is not None:
                await permitted()
            key = await self._take()
            if key is None:
                return
            try:
                outcome = await handle(key)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - one job's pass must not end the others'
                pause = self.schedule.failed(key, self.clock())
                if self.on_error is not None:
                    self.on_error(key, error, pause)
            else:
                if outcome.gone:
                    self.schedule.forget(key)
                else:
                    self.schedule.done(key, self.clock(), outcome.again_after)
            self._changed.set()

    async def _take(self) -> K | None:
        while not self._closed:
            now = self.clock()
            due = self.schedule.next_due()
            key = self.schedule.pop(now)
            if key is not None:
                if self.on_taken is not None and due is not None:
                    self.on_taken(now - due)
                return key
            self._changed.clear()
            try:
                async with asyncio.timeout(None if due is None else max(0.0, due - now)):
                    await self._changed.wait()
            except TimeoutError:
                continue
        return None
