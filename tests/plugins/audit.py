"""Reads the API server's audit log: which requests did a component really make?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True)
class Request:
    """One finished request. `resource` is like "pods" or "pods/status"; `agent` is the client's User-Agent."""

    verb: str
    resource: str
    namespace: str
    name: str
    user: str
    agent: str
    code: int
    time: str

    @property
    def writes(self) -> bool:
        return self.verb in WRITES


class AuditLog:
    """The audit log of one instance. The API server writes a request's line before it ends its answer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def position(self) -> int:
        """Where the log ends now: give it to `since`."""
        return self.path.stat().st_size

    def since(self, position: int) -> list[Request]:
        """The requests that ended after `position`, in the order in which they ended."""
        with self.path.open("rb") as log:
            log.seek(position)
            return [parsed(json.loads(line)) for line in log if line.endswith(b"\n")]

    def writes(self, position: int, *, user: str = "", agent: str = "") -> list[Request]:
        """The writes after `position` whose user and User-Agent contain these words."""
        return [each for each in self.since(position) if each.writes and user in each.user and agent in each.agent]


def parsed(event: dict[str, Any]) -> Request:
    target = event.get("objectRef", {})
    parts = [target.get("resource", ""), target.get("subresource", "")]
    return Request(
        verb=event["verb"],
        resource="/".join(filter(None, parts)),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        user=event["user"]["username"],
        agent=event.get("userAgent", ""),
        code=event.get("responseStatus", {}).get("code", 0),
        time=event["stageTimestamp"],
    )
