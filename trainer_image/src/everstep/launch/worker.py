"""`python -m everstep.launch.worker [-m] SCRIPT …`: runs a training script as python itself would, and writes down what
it dies of, also where it fails before it imports everstep."""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import sys
from types import TracebackType
from typing import Any

from everstep import exits
from everstep.checkpoint import termination
from everstep.launch import stacks

_PR_SET_PDEATHSIG = 1


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["-m"]:
        arguments = arguments[1:]
        as_module = True
    else:
        as_module = False
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
    sys.argv = arguments
    termination.install()
    stacks.register()
    die_with_parent()
    words = sys.stderr = LastWords(sys.stderr)
    try:
        if as_module:
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if end.code not in (0, None):
            code = end.code if isinstance(end.code, int) else exits.FAILED
            record = termination.describe(end, code)
            if isinstance(end.code, int):
                message = f"{end.code}: {words.line}" if words.line else str(end.code)
                record = record.model_copy(update={"message": message})
            termination.write_record(record)
        raise
    except BaseException as error:  # noqa: BLE001 - whatever it is, it ends this process
        sys.excepthook(type(error), error, own_frames(error.__traceback__))
        sys.exit(exits.FAILED)


class LastWords:
    """Standard error, and the last line that went there: an exit code alone tells little (argparse's 2, say)."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.line = ""

    def write(self, text: str) -> int:
        said = text.strip()
        if said:
            self.line = said.splitlines()[-1][:500]
        written: int = self._stream.write(text)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def die_with_parent() -> None:
    """A killed agent leaves no rank behind that goes on for nobody (Linux; elsewhere the claim sees to it)."""
    agent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != agent:
        os.kill(os.getpid(), signal.SIGKILL)


def own_frames(trace: TracebackType | None) -> TracebackType | None:
    """Without the frames of this module and of runpy, which tell the user nothing."""
    inner = trace
    while inner is not None and inner.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>", runpy.__file__):
        inner = inner.tb_next
    return inner or trace


if __name__ == "__main__":
    main()
