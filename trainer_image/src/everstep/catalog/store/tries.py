"""When a request is sent again. Tries are ours, not botocore's: it draws its pauses from Python's global generator, and
a training script's random numbers must not depend on how often storage hiccuped.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from everstep.errors import StorageUnavailableError

T = TypeVar("T")

_LONGEST_PAUSE = 20.0
_jitter = random.SystemRandom()
"""A fork draws others: ranks that are forked from one process would all pause for the same time."""


class Tries:
    """The tries of one task of one request or of many in parallel.

    A request is given up when it was tried `attempts` times and nothing of the task has succeeded for `patience`
    seconds. The pause before the n-th repetition is drawn from [0, 2^(n-1)] seconds: clients that failed together do
    not come back together.
    """

    def __init__(self, attempts: int, patience: float = 0.0, told: Callable[[], None] = lambda: None) -> None:
        """`told` hears of each request that is sent again."""
        self.retries = 0
        self._told = told
        self._attempts = attempts
        self._patience = patience
        self._well = time.monotonic()
        self._given_up = threading.Event()
        self._lock = threading.Lock()

    def run(self, call: Callable[[], T]) -> T:
        """Raises what `call` raises, StorageUnavailableError with the number of tries."""
        began, turn = time.monotonic(), 0
        while True:
            try:
                result = call()
            except StorageUnavailableError as error:
                turn += 1
                if self._is_over(turn):
                    spent = time.monotonic() - began
                    raise type(error)(f"{error} ({turn} {'try' if turn == 1 else 'tries'} in {spent:.1f} s)") from error
            else:
                with self._lock:
                    self._well = time.monotonic()
                return result
            self._given_up.wait(min(_LONGEST_PAUSE, 2.0 ** (turn - 1)) * _jitter.random())

    def give_up(self) -> None:
        """No more tries: the task has failed elsewhere."""
        self._given_up.set()

    def _is_over(self, turn: int) -> bool:
        with self._lock:
            impatient = time.monotonic() - self._well >= self._patience
            over = self._given_up.is_set() or (turn >= self._attempts and impatient)
            self.retries += not over
        if not over:
            self._told()
        return over
