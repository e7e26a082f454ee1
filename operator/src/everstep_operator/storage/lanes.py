"""Blocking storage calls off the event loop: bounded threads an endpoint, so that one that hangs delays no other.

A lane has a few threads for what recovery waits for and a few of its own for removals, which may take minutes. A call
that is given up on goes on in its thread until the socket's own time-outs end it; it keeps its place till then, so a
dead endpoint has at most its lane's threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Literal, TypeVar

from everstep.errors import StorageUnavailableError

T = TypeVar("T")

Pace = Literal["fast", "slow"]

SLOW_THREADS = 2
TIRED = 0.5
"""Seconds that a call is waited for where the lane's last calls went unanswered: workers are for all endpoints."""


class LaneTimeoutError(StorageUnavailableError):
    """No answer within the time that a pass can wait; the call may still end either way."""


class Lane:
    """The threads of one endpoint."""

    def __init__(self, endpoint: str, threads: int) -> None:
        self.endpoint = endpoint
        self._pools = {
            "fast": ThreadPoolExecutor(max(1, threads), thread_name_prefix=f"storage {endpoint}"),
            "slow": ThreadPoolExecutor(SLOW_THREADS, thread_name_prefix=f"removal {endpoint}"),
        }
        self._unanswered = False

    def submit(self, call: Callable[[], T], pace: Pace = "fast") -> Future[T]:
        future = self._pools[pace].submit(copy_context().run, call)  # what it logs is about the job that asked
        future.add_done_callback(self._ended)
        return future

    def _ended(self, future: Future[T]) -> None:
        """Any end but silence shows that somebody is there, also one that comes after its pass gave up."""
        if not future.cancelled() and not isinstance(future.exception(), StorageUnavailableError):
            self._unanswered = False

    async def run(self, call: Callable[[], T], seconds: float, pace: Pace = "fast") -> T:
        return await self.wait(self.submit(call, pace), seconds)

    async def wait(self, future: Future[T], seconds: float) -> T:
        """The call's result. Raises LaneTimeoutError after `seconds`, and leaves the call to itself.

        A call that no thread has begun by then is cancelled.
        """
        wrapped = asyncio.wrap_future(future)
        seconds = min(seconds, TIRED) if self._unanswered else seconds
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(wrapped)
        except TimeoutError as error:
            self._unanswered = True
            wrapped.add_done_callback(_swallow)
            wrapped.cancel()  # reaches a future that waits for a thread; one that runs goes on
            raise LaneTimeoutError(f"{self.endpoint}: no answer in time") from error

    def close(self) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)


def _swallow(future: asyncio.Future[T]) -> None:
    if not future.cancelled():
        future.exception()


class Lanes:
    """One lane an endpoint."""

    def __init__(self, threads: int = 8) -> None:
        self._threads = threads
        self._lanes: dict[str, Lane] = {}

    def lane(self, endpoint: str | None) -> Lane:
        name = endpoint or "aws"
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(name, self._threads)
        return lane

    def close(self) -> None:
        for lane in self._lanes.values():
            lane.close()
