"""How a process ends that has imported torch, and has said all that it had to say."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn


def end_after(todo: Callable[[], None]) -> NoReturn:
    """Do it and end as an interpreter does, other threads and exit handlers first, but take apart nothing of what was
    imported: with torch that takes most of a second, and more in a fork, where each page is copied first; its bindings
    then call leaked what is shared, below a script's last words."""
    code, interrupted = _outcome(todo)
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    finally:  # also where a signal's handler raises meanwhile: nothing above this frame is to go on
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        ctypes.CDLL(None).fflush(None)
        if interrupted:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(code & 0xFF)


def _outcome(todo: Callable[[], None]) -> tuple[int, bool]:
    """The exit code that an interpreter would give, and whether it would end by SIGINT."""
    try:
        todo()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0, False
        print(end.code, file=sys.stderr)
        return 1, False
    except BaseException as error:  # noqa: BLE001 - whatever it is, it ends this process
        sys.excepthook(type(error), error, error.__traceback__)
        return 1, isinstance(error, KeyboardInterrupt)
    return 0, False
