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
import time
import traceback
import weakref
from _io import _IOBase  # io.IOBase asks each class that it is shown whether it is one
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

_PATIENCE = 30.0
"""Seconds that all unwritten files have together. One that another thread writes to, and cannot, is never free."""
_STUCK = 1.0
"""Seconds after which the other files go on without one; an interpreter, too, waits so long for a busy file."""
_HELPERS = 8

_BUFFERED = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
_frozen: list[weakref.ref[Any]] = []


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
            _finish(_open_files())
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


def before_forking() -> None:
    """Write what stands in buffers, or each fork would write it again, and freeze what is shared, so that it stays so.
    Frozen objects are seen by no collector: the files among them are kept in mind."""
    files = _open_files()
    for each in files:
        if isinstance(each, _BUFFERED):
            with suppress(Exception):
                each.flush()
    _frozen.extend(weakref.ref(each) for each in files)
    del files
    gc.collect()
    gc.freeze()


def _open_files() -> list[Any]:
    """What has something to write when an interpreter takes it apart, in the order in which the one writes into the
    other."""
    module = sys.modules.get("zipfile")
    kinds = (_IOBase,) if module is None else (_IOBase, module.ZipFile)
    tracked = [reference() for reference in _frozen] + gc.get_objects()
    # not isinstance: some objects import a module when they are asked
    found = [each for each in tracked if issubclass(type(each), kinds)]
    return sorted((each for each in found if type(each).__module__ != "_io" or isinstance(each, _BUFFERED)), key=_turn)


def _turn(file: Any) -> int:
    if isinstance(file, io.TextIOWrapper):
        return 0
    if isinstance(file, _BUFFERED):
        return 3
    if not isinstance(file, _IOBase):
        return 2  # an archive, after what is open in it
    return 4 if isinstance(file, io.RawIOBase) else 1


def _finish(files: Iterable[Any]) -> None:
    """Each file in its turn. One that blocks holds up the end for a while, and no other."""
    of_c = partial(ctypes.CDLL(None).fflush, None)
    turns = iter([*(partial(_write, each) for each in (*files, sys.stdout, sys.stderr)), of_c])

    def work() -> None:
        for turn in turns:
            with suppress(Exception):
                turn()

    until = time.monotonic() + _PATIENCE
    stuck: list[threading.Thread] = []
    for _ in range(_HELPERS):
        helper = threading.Thread(target=work, daemon=True)
        helper.start()
        helper.join(_STUCK)
        if not helper.is_alive():
            break
        stuck.append(helper)
    for helper in stuck:
        helper.join(max(0.0, until - time.monotonic()))


def _write(file: Any) -> None:
    if isinstance(file, _BUFFERED) or file is sys.stdout or file is sys.stderr:
        file.flush()
    elif not isinstance(file, _IOBase) or file.writable():
        file.close()  # its last bytes, such as a sum or a directory, are written by no flush
