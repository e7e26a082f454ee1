"""How a process ends that has imported torch, and has said all that it had to say."""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn


def end_after(todo: Callable[[], None]) -> NoReturn:
    """Do it and end as an interpreter does, with other threads, exit handlers and unwritten files, but take apart
    nothing of what was imported: with torch that takes most of a second, and more in a fork, where each page is copied
    first; its bindings then call leaked what is shared, below a script's last words.

    Nothing above this frame goes on, whatever handlers and hooks raise: in a fork that would be another's work.
    """
    code, interrupted = 1, False
    try:
        try:
            code, interrupted = _outcome(todo)
        finally:
            try:
                threading._shutdown()  # type: ignore[attr-defined]
            finally:
                atexit._run_exitfuncs()
    finally:
        try:
            _write_out()
        finally:
            if interrupted:  # PID 1 outlives that
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
        try:
            sys.excepthook(type(error), error, error.__traceback__)
        except BaseException:  # noqa: BLE001 - a hook of somebody's own
            traceback.print_exception(error)
        return (128 + signal.SIGINT, True) if isinstance(error, KeyboardInterrupt) else (1, False)
    return 0, False


def _write_out() -> None:
    """What stands in the buffers of files that nobody has closed. Those of before a fork are frozen, and not seen."""
    tracked = gc.get_objects()
    for kind in (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom):
        for each in tracked:
            if issubclass(type(each), kind):  # not isinstance: some objects import a module when they are asked
                with suppress(Exception):
                    each.flush()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    ctypes.CDLL(None).fflush(None)
