"""A proxy that sees each write of the operator and can kill it just before one goes out, or just after it was answered.

It stands between the operator and the API server (plain HTTP to TLS) or the S3 server, forwards streams as they come,
and never answers a request on whose account it has killed: as a crash would look from both sides.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from aiohttp import web

from tests.support.listener import Listener

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True)
class Trap:
    """Spring at the `nth` write of a kind."""

    kind: str
    nth: int
    when: Literal["before", "after"]


class Proxy(Listener):
    """`kind_of` names a write by method and path with query, or None for one that is not counted."""

    def __init__(
        self, upstream: str, kind_of: Callable[[str, str], str | None], tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(upstream, tls=tls)
        self.kind_of = kind_of
        self.kill: Callable[[], None] = lambda: None
        self.trap: Trap | None = None
        self.writes: list[str] = []
        self.sprung = threading.Event()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        kind = self.kind_of(request.method, request.path_qs) if request.method in WRITES else None
        trap = None
        if kind is not None:
            self.writes.append(kind)
            wanted = self.trap
            if wanted and wanted.kind == kind and self.writes.count(kind) == wanted.nth and not self.sprung.is_set():
                trap = wanted
        body = await request.content.read()
        if trap is not None and trap.when == "before":
            return self._spring(request)
        async with self.asked(request, body) as answer:
            if trap is not None:
                await answer.read()
                return self._spring(request)
            return await self.streamed(request, answer)

    def _spring(self, request: web.BaseRequest) -> web.StreamResponse:
        self.kill()
        self.sprung.set()
        return self.cut(request)
