"""The record that a failing rank leaves in the container's termination message: a worker group's first failure wins.

torchrun masks its workers (a SIGKILLed one and one that exits with 3 both end the container with 1), so this record is
what tells people and the operator why a gang died.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

DEFAULT_PATH = Path("/dev/termination-log")
MAX_BYTES = 4096
"""The kubelet keeps no more of a termination message."""
_PEER_SIGNS = (
    "closed by peer",
    "connection reset",
    "connection refused",
    "remote process exited",
    "socket closed",
    "broken pipe",
)


class FailureRecord(BaseModel):
    model_config = ConfigDict(extra="ignore")

    rank: int | None = None
    exit_code: int | None = None
    signal: str | None = None
    exception: str | None = None
    message: str = ""
    traceback: list[str] = []
    """The last lines, newest last."""
    step: int | None = None
    time: datetime
    restart: int = 0
    """How often this node's agent had restarted its workers; a later group's record replaces an earlier one's."""
    peer_lost: bool = False
    """A consequence: the exception says that another rank went away first."""


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
        traceback=lines[-6:],
        step=step,
        time=datetime.now(UTC),
        restart=_int_variable("TORCHELASTIC_RESTART_COUNT") or 0,
        peer_lost=looks_like_lost_peer(message),
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


def encode(record: FailureRecord) -> bytes:
    """At most MAX_BYTES: the oldest traceback lines go first, then the message's tail."""
    content: dict[str, Any] = record.model_dump(mode="json", exclude_none=True)
    while True:
        body = json.dumps(content, ensure_ascii=False).encode()
        if len(body) <= MAX_BYTES:
            return body
        if len(content["traceback"]) > 1:
            content["traceback"] = content["traceback"][1:]
        else:
            content["traceback"] = [line[-200:] for line in content["traceback"]]
            content["message"] = content["message"][: max(100, len(content["message"]) // 2)]
            if len(content["message"]) == 100 and len(json.dumps(content).encode()) > MAX_BYTES:
                content["traceback"] = []


def read_record(path: Path) -> FailureRecord | None:
    try:
        return FailureRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def write_record(record: FailureRecord, path: Path | None = None, replace: bool = False) -> bool:
    """Returns whether the record was written: not where an earlier failure of the same worker group stands already.

    Never raises: a process that is failing must not fail over its own report. Outside a container, where the default
    path does not exist, nothing is written.
    """
    target = path or termination_path()
    if target == DEFAULT_PATH and not target.exists():
        return False
    try:
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not replace and _stands(descriptor, record):
            return False
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, encode(record), 0)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def _stands(descriptor: int, record: FailureRecord) -> bool:
    body = os.pread(descriptor, 2 * MAX_BYTES, 0)
    if not body.strip():
        return False
    try:
        earlier = FailureRecord.model_validate_json(body)
    except ValidationError:
        return True  # somebody else's message
    return earlier.restart >= record.restart


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
