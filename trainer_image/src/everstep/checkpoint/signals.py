"""SIGTERM as a flag: it is looked at between two steps, where all ranks can agree on what to save."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class TerminationFlag:
    """Handlers can only be set in the main thread; elsewhere the flag stays down."""

    def __init__(self) -> None:
        self.raised = False
        self._previous: Any = None
        self._installed = False

    def install(self) -> None:
        if threading.current_thread() is threading.main_thread() and not self._installed:
            self._previous = signal.signal(signal.SIGTERM, self._handle)
            self._installed = True

    def uninstall(self) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous if self._previous is not None else signal.SIG_DFL)
            self._installed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.raised = True
