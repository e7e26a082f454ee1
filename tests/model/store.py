"""Object storage as bad as it can be, under the control of a scheduler.

Every request of an actor stops at the door (its greenlet yields) until the scheduler lets it through with one
outcome: served, lost on the way there, lost on the way back, delayed beyond the answer, or sent twice. The code under
test is the real one and does not know.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import greenlet

from everstep.catalog.documents import Catalog, decode
from everstep.catalog.keys import CATALOG
from everstep.catalog.store import (
    UNCHANGED,
    KeyNotFound,
    ObjectInfo,
    SwapRefused,
    SwapUnanswered,
    Unchanged,
    Versioned,
    never,
)
from everstep.errors import StorageUnavailableError

OUTCOMES = ("ok", "lost-request", "lost-answer", "delayed", "repeated")


@dataclass
class Request:
    """One request at the door. `apply` is what the server does with it, now or later."""

    kind: str
    apply: Callable[[], Any]
    is_write: bool = False
    is_swap: bool = False


@dataclass
class World:
    """The server's side: objects, the register's whole history, and writes still on their way."""

    objects: dict[str, bytes] = field(default_factory=dict)
    history: list[Catalog] = field(default_factory=list)
    in_flight: list[Request] = field(default_factory=list)
    on_change: Callable[[], None] = lambda: None
    now: float = 1_000_000.0

    def clock(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)

    def etag(self, key: str) -> str | None:
        body = self.objects.get(key)
        return None if body is None else hashlib.md5(body).hexdigest()

    def swap(self, key: str, body: bytes, token: str | None) -> str:
        if self.etag(key) != token:
            raise SwapRefused(key)
        self.objects[key] = body
        if key == CATALOG:
            self.history.append(decode(body))
        self.on_change()
        return str(self.etag(key))

    def put(self, key: str, body: bytes) -> None:
        self.objects[key] = body
        self.on_change()

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            if key != CATALOG:  # how a register goes, and what follows, is `lose_register`'s business
                self.objects.pop(key, None)
        self.on_change()

    def deliver(self, index: int) -> None:
        """A delayed or repeated write arrives; its answer goes nowhere."""
        request = self.in_flight.pop(index % len(self.in_flight))
        try:
            request.apply()
        except SwapRefused:
            return


class SimulatedStore:
    """The `Store` that an actor is given."""

    uri = "sim://root"
    retries = 0

    def __init__(self, world: World) -> None:
        self.world = world

    def _ask(self, request: Request) -> Any:
        parent = greenlet.getcurrent().parent
        if parent is None:
            return request.apply()  # called by the test itself, outside any actor
        outcome = parent.switch(request)
        match outcome:
            case "lost-request":
                pass
            case "lost-answer":
                self._swallow(request)
            case "delayed" if request.is_write:
                self.world.in_flight.append(request)
            case "repeated" if request.is_write:
                self.world.in_flight.append(request)
                return request.apply()
            case _:
                return request.apply()
        if request.is_swap:
            raise SwapUnanswered(request.kind)
        raise StorageUnavailableError(request.kind)

    @staticmethod
    def _swallow(request: Request) -> None:
        try:
            request.apply()
        except (SwapRefused, KeyNotFound):
            return

    def read_register(self, key: str, known: str | None = None) -> Versioned | Unchanged | None:
        def read() -> Versioned | Unchanged | None:
            body, tag = self.world.objects.get(key), self.world.etag(key)
            if body is None or tag is None:
                return None
            return UNCHANGED if tag == known else Versioned(body, tag)

        return cast("Versioned | Unchanged | None", self._ask(Request(f"read {key}", read)))

    def swap_register(self, key: str, body: bytes, token: str | None) -> str:
        request = Request(f"swap {key}", lambda: self.world.swap(key, body, token), is_write=True, is_swap=True)
        return str(self._ask(request))

    def get(self, key: str, limit: int | None = None) -> bytes:
        def read() -> bytes:
            if key not in self.world.objects:
                raise KeyNotFound(key)
            return self.world.objects[key]

        return bytes(self._ask(Request(f"get {key}", read)))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self.get(key)[start : start + length]

    def read_into(self, key: str, start: int, into: memoryview) -> int:
        body = self.get_range(key, start, len(into))
        into[: len(body)] = body
        return len(body)

    def put(self, key: str, body: bytes | bytearray | memoryview, sums: Sequence[int] = ()) -> int:
        content = bytes(body)
        self._ask(Request(f"put {key}", lambda: self.world.put(key, content), is_write=True))
        return 0

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        found = self._ask(
            Request(f"list {prefix}", lambda: sorted(k for k in self.world.objects if k.startswith(prefix)))
        )
        return iter([ObjectInfo(key, 1) for key in found])

    def list_folders(self, prefix: str) -> Iterator[str]:
        def read() -> list[str]:
            keys = [key for key in self.world.objects if key.startswith(prefix)]
            return sorted({prefix + key[len(prefix) :].split("/", 1)[0] for key in keys})

        return iter(self._ask(Request(f"folders {prefix}", read)))

    def delete(self, keys: Iterable[str]) -> None:
        names = list(keys)
        self._ask(Request(f"delete {names}", lambda: self.world.delete(names), is_write=True))

    def abort_uploads(self, prefix: str, older_than: datetime, dead: Callable[[str], bool] = never) -> int:
        return 0
