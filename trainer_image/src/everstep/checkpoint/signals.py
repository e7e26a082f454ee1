"""SIGTERM and Ctrl+C as a flag: it is looked at between two steps, where all ranks can agree on what to save."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

AGAIN = 1.0
"""Seconds after which a second SIGINT is a second Ctrl+C: a terminal and a launcher both pass on the first."""
_NOTICE = b"everstep: stopping after this step, which is saved; Ctrl+C again stops at once\n"


class TerminationFlag:
    """Handlers can only be set in the main thread; elsewhere the flag stays down.

    SIGINT is left alone where somebody has a handler of their own for it, or ignores it.
    """

    def __init__(self) -> None:
        self.raised = False
        self.name = signal.SIGTERM.name
        """What raised it; SIGTERM where nothing has."""
        self._previous: dict[int, Any] = {}
        self._interrupted: float | None = None

    def install(self) -> None:
        if threading.current_thread() is not threading.main_thread() or self._previous:
            return
        self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._handle)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)

    def uninstall(self) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous if previous is not None else signal.SIG_DFL)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.raised = True
        self.name = signal.Signals(number).name

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            self._handle(number, frame)
            if os.environ.get("RANK", "0") == "0":
                os.write(2, _NOTICE)  # print is not made for signal handlers
        elif now - self._interrupted > AGAIN:
            raise KeyboardInterrupt
