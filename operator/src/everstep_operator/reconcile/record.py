"""The record that the library leaves in a termination message; whatever else stands there is taken for a log's end."""

from __future__ import annotations

import json
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class FailureRecord(BaseModel):
    """What a failing rank knew. Everything but the time may be absent."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    rank: int | None = Field(default=None, ge=0)
    exit_code: int | None = None
    signal: str | None = None
    exception: str | None = None
    message: str = ""
    traceback: tuple[str, ...] = ()
    step: int | None = Field(default=None, ge=0)
    time: datetime
    peer_lost: bool = False
    """A consequence: another rank went away first."""

    @property
    def stopped(self) -> bool:
        """It was told to stop, by whoever deleted its pod or a peer's."""
        return self.signal == "SIGTERM"


def read(message: str | None) -> FailureRecord | None:
    """Never raises: a tenant can write anything into a termination message."""
    if not message or not message.lstrip().startswith("{"):
        return None
    try:
        found = FailureRecord.model_validate(json.loads(message))
    except (ValueError, RecursionError, ValidationError):
        return None
    return found if found.time.tzinfo is not None else None
