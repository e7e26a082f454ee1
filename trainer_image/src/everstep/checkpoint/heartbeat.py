"""The sign of life: a thread of rank 0 that overwrites one small object, whatever training is waiting for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from everstep.catalog import Heartbeat, Store, write_heartbeat
from everstep.catalog.progress import Phase, read_request
from everstep.errors import CheckpointError, FencedError

log = logging.getLogger("everstep")


FENCE_CHECK_SECONDS = 30.0
"""How often a group that does not save asks whether it is still the one that may."""
STANDSTILL_SECONDS = 3.0
"""After a beat that is so late it asks first: another group's beats may stand by now where its own would go."""


class HeartbeatThread:
    """`interval` in seconds. A storage error is logged once and never leaves here.

    `ask` tells whether another worker group has taken over; `fenced` keeps the answer. With each beat it looks whether
    somebody asks for a save.
    """

    def __init__(
        self, store: Store, attempt: int, epoch: int, interval: float, ask: Callable[[], FencedError | None]
    ) -> None:
        now = datetime.now(UTC)
        self.fenced: FencedError | None = None
        self._store = store
        self._ask = ask
        self._asked = time.monotonic()
        self._interval = interval
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = False
        self._failing = False
        self._request_token: str | None = None
        self._state = Heartbeat(attempt=attempt, epoch=epoch, beat=0, time=now, phase="starting", phase_since=now)
        self._thread = threading.Thread(target=self._run, name="everstep-heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def update(self, **changes: Any) -> None:
        """Goes out with the next beat; a change of `phase` goes out at once."""
        with self._lock:
            phase: Phase | None = changes.get("phase")
            if phase is not None and phase != self._state.phase:
                changes["phase_since"] = datetime.now(UTC)
                self._wake.set()
            self._state = self._state.model_copy(update=changes)

    def asks_for_save(self) -> bool:
        """Whether somebody has asked for a save that no save has followed yet."""
        with self._lock:
            return self._state.request is not None and self._state.request_step is None

    def saves(self, step: int) -> None:
        """A save of this step begins: whatever was asked for is in it."""
        if self.asks_for_save():
            self.update(request_step=step)

    def close(self, **changes: Any) -> None:
        """Write a last beat and end; does not wait longer than a few seconds for storage."""
        self.update(**changes)
        self._stop = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        last = time.monotonic()
        while True:
            self._wake.clear()  # before it is looked whether this beat is the last: a later `close` wakes the wait
            stopping = self._stop
            now = time.monotonic()
            due = now - self._asked >= FENCE_CHECK_SECONDS or now - last - self._interval >= STANDSTILL_SECONDS
            if self.fenced is None and due:
                self.fenced = self._ask()
                self._asked = now
            if self.fenced is None:
                self._look()
                self._beat()
            if stopping:
                return
            last = time.monotonic()
            self._wake.wait(self._interval)

    def _look(self) -> None:
        try:
            found = read_request(self._store, self._state.attempt, self._request_token)
        except Exception:
            log.debug("could not look whether a save is asked for", exc_info=True)
            return
        if isinstance(found, tuple):
            request, self._request_token = found
            if request.checkpoint != self._state.request:
                self.update(request=request.checkpoint, request_step=None)

    def _beat(self) -> None:
        with self._lock:
            self._state = self._state.model_copy(update={"beat": self._state.beat + 1, "time": datetime.now(UTC)})
            state = self._state
        try:
            write_heartbeat(self._store, state)
            self._failing = False
        except CheckpointError as error:
            if not self._failing:
                log.warning("heartbeat not written: %s", error)
            self._failing = True
        except Exception:
            if not self._failing:
                log.exception("heartbeat not written")
            self._failing = True
