"""Why a rank failed, as the library leaves it in the container's termination message and the operator reads it.

torchrun masks its workers (a SIGKILLed one and one that exits with 3 both end the container with 1), so this record is
what tells people and the operator why a gang died. Until a rank fails a mark stands in its place: how far the pod got,
which no process has to be alive to tell.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_BYTES = 4096
"""The kubelet keeps no more of a termination message."""


class FailureRecord(BaseModel):
    """What is known of a failing rank. Everything but the time may be absent."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    rank: int | None = Field(default=None, ge=0)
    exit_code: int | None = None
    signal: str | None = None
    exception: str | None = None
    message: str = ""
    traceback: tuple[str, ...] = ()
    """The last lines, newest last."""
    step: int | None = Field(default=None, ge=0)
    time: datetime
    restart: int = 0
    """How often this node's agent had restarted its workers; a later group's record replaces an earlier one's."""
    peer_lost: bool = False
    """A consequence: the exception says that another rank went away first."""

    @property
    def stopped(self) -> bool:
        """It was told to stop, by whoever deleted its pod or a peer's."""
        return self.signal == "SIGTERM"


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


def decode(message: str | bytes | None) -> FailureRecord | None:
    """None for anything else, such as a log's end: a tenant can write anything into a termination message."""
    if not message or message.lstrip()[:1] not in ("{", b"{"):
        return None
    try:
        found = FailureRecord.model_validate(json.loads(message))
    except (ValueError, RecursionError, ValidationError):
        return None
    return found if found.time.tzinfo is not None else None


_MARK = re.compile(rb'\{"step": (\d{1,15})\} *')
MARK_BYTES = 32
"""Of each mark, so that one write puts it in the place of the one before, whole."""


def encode_mark(step: int) -> bytes:
    """The last step that has ended."""
    return json.dumps({"step": step}).encode().ljust(MARK_BYTES)


def decode_mark(message: str | bytes | None) -> int | None:
    """The step of a mark; None for anything else, records too."""
    body = message.encode() if isinstance(message, str) else message
    found = _MARK.fullmatch(body) if body else None
    return int(found[1]) if found else None


def reached(message: str | bytes | None) -> int | None:
    """The last step that a termination message tells of, be it a mark or a record."""
    record = decode(message)
    return decode_mark(message) if record is None else record.step
