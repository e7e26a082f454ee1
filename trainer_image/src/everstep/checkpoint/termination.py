"""Leaves the record of a failing rank in the container's termination message: a worker group's first failure wins,
save that a cause takes the place of a consequence."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from everstep.errors import StorageError
from everstep.failure import MAX_BYTES, FailureRecord, decode, decode_mark, encode, reached

DEFAULT_PATH = Path("/dev/termination-log")
_PEER_SIGNS = (
    "closed by peer",
    "connection reset",
    "connection refused",
    "remote process exited",
    "socket closed",
    "broken pipe",
)


def looks_like_lost_peer(message: str) -> bool:
    lowered = message.lower()
    return any(sign in lowered for sign in _PEER_SIGNS)


def termination_path() -> Path:
    return Path(os.environ.get("EVERSTEP_TERMINATION_LOG") or DEFAULT_PATH)


def describe(error: BaseException, exit_code: int, step: int | None = None) -> FailureRecord:
    """What is known inside the failing process."""
    lines = [line for text in traceback.format_exception(error) for line in text.rstrip("\n").split("\n")]
    message = str(error) or type(error).__name__
    return FailureRecord(
        rank=_int_variable("RANK"),
        exit_code=exit_code,
        exception=type(error).__name__,
        message=message,
        traceback=tuple(lines[-6:]),
        step=step,
        time=datetime.now(UTC),
        restart=_int_variable("TORCHELASTIC_RESTART_COUNT") or 0,
        peer_lost=looks_like_lost_peer(message) and not isinstance(error, OSError | StorageError),
    )


def describe_sigterm(step: int | None, message: str) -> FailureRecord:
    return FailureRecord(
        rank=_int_variable("RANK"),
        exit_code=128 + signal.SIGTERM,
        signal="SIGTERM",
        message=message,
        step=step,
        time=datetime.now(UTC),
        restart=_int_variable("TORCHELASTIC_RESTART_COUNT") or 0,
    )


def _int_variable(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else None


def read_record(path: Path) -> FailureRecord | None:
    try:
        return decode(path.read_bytes())
    except OSError:
        return None


def write_record(record: FailureRecord, path: Path | None = None, replace: bool = False) -> bool:
    """Returns whether the record was written: not where an earlier failure of the same worker group stands already.

    Never raises: a process that is failing must not fail over its own report. Outside a container, where the default
    path does not exist, nothing is written. A record that knows no step gets the last one that is known of its group.
    """
    descriptor = open_message(path)
    if descriptor is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        body = os.pread(descriptor, 2 * MAX_BYTES, 0)
        if not replace and _stands(body, record):
            return False
        if record.step is None:
            record = record.model_copy(update={"step": _step_of_group(body, record.restart)})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, encode(record), 0)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def open_message(path: Path | None = None) -> int | None:
    """A descriptor of the container's termination message; None where there is none."""
    target = path or termination_path()
    if target == DEFAULT_PATH and not target.exists():
        return None
    try:
        return os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        return None


def _step_of_group(body: bytes, restart: int) -> int | None:
    earlier = decode(body)
    return reached(body) if earlier is None or earlier.restart == restart else None


def _stands(body: bytes, record: FailureRecord) -> bool:
    if not body.strip() or decode_mark(body) is not None:
        return False
    earlier = decode(body)
    if earlier is None:
        return True  # somebody else's message
    if earlier.restart == record.restart:
        # A rank that was fenced asks the storage why its peer went away; that peer may have ended meanwhile.
        return not earlier.peer_lost or record.peer_lost or record.stopped
    return earlier.restart > record.restart


Hook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


def install(step: Callable[[], int | None] = lambda: None) -> None:
    """Record uncaught exceptions of this process. Installing again replaces `step` only."""
    previous = sys.excepthook
    if isinstance(previous, _RecordingHook):
        previous.step = step
        return
    sys.excepthook = _RecordingHook(previous, step)


class _RecordingHook:
    def __init__(self, previous: Hook, step: Callable[[], int | None]) -> None:
        self.previous = previous
        self.step = step

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        write_record(describe(error.with_traceback(trace), 1, self.step()))
        self.previous(kind, error, trace)
