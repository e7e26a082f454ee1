"""Threads that do not keep the process.

At its end Python waits for those of a ThreadPoolExecutor, for as long as storage is away: a run that has given its save
up would still stand there.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonPool:
    """`most` threads, of which each task starts one until there are so many, and which are kept. Whoever waits for its
    futures is in none of them."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._started = 0
        self._lock = threading.Lock()

    def submit(self, call: Callable[..., T], *arguments: Any) -> Future[T]:
        """Raises RuntimeError where there is no room for a single thread: then nothing is submitted."""
        future: Future[T] = Future()
        with self._lock:
            if self._started < self._most:
                try:
                    begin(self._work, f"{self._name}-{self._started}")
                    self._started += 1
                except RuntimeError:
                    if not self._started:
                        raise
            self._tasks.put((future, lambda: call(*arguments)))
        return future

    def close(self) -> None:
        """Let the threads end once they have done what was submitted; what is submitted later has others."""
        with self._lock:
            for _ in range(self._started):
                self._tasks.put(None)
            self._started = 0

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            _fulfil(*task)
            del task  # what it holds may be large, and the next may be long in coming


def at_once(calls: Sequence[Callable[[], T]], name: str) -> list[T]:
    """Their results, each call by a thread of its own. Raises the first error, when all have ended."""
    futures = [begin(call, f"{name}-{number}") for number, call in enumerate(calls)]
    wait(futures)
    return [future.result() for future in futures]


def begin(call: Callable[[], T], name: str) -> Future[T]:
    """Its result, some day."""
    future: Future[T] = Future()
    threading.Thread(target=_fulfil, args=(future, call), name=name, daemon=True).start()
    return future


def _fulfil(future: Future[T], call: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - whoever waits hears of it
        # Kept until somebody asks, or for longer by a cycle, it keeps nothing large with it.
        traceback.clear_frames(error.__traceback__)
        future.set_exception(error)
        del future, call
    else:
        future.set_result(result)
