"""A proxy that sees each write of the operator and can kill it just before one goes out, or just after it was answered.

It stands between the operator and the API server (plain HTTP to TLS) or the S3 server, forwards streams as they come,
and never answers a request on whose account it has killed: as a crash would look from both sides.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from aiohttp import web
from yarl import URL

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect"})


@dataclass(frozen=True)
class Trap:
    """Spring at the `nth` write of a kind."""

    kind: str
    nth: int
    when: Literal["before", "after"]


@dataclass
class Proxy:
    """`kind_of` names a write by method and path with query, or None for one that is not counted."""

    upstream: str
    kind_of: Callable[[str, str], str | None]
    tls: ssl.SSLContext | None = None
    kill: Callable[[], None] = lambda: None
    trap: Trap | None = None
    writes: list[str] = field(default_factory=list)
    sprung: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Proxy:
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="proxy", daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))

    async def _serve(self, started: threading.Event) -> None:
        self._end = asyncio.Event()
        limits = aiohttp.TCPConnector(ssl=self.tls if self.tls else True, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            connector=limits, timeout=timeout, auto_decompress=False, skip_auto_headers=("User-Agent", "Content-Type")
        ) as session:
            self._session = session
            server = web.Server(self._handle, access_log=None)
            runner = web.ServerRunner(server, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self._port = runner.addresses[0][1]
            started.set()
            await self._end.wait()
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        kind = self.kind_of(request.method, request.path_qs) if request.method in WRITES else None
        trap = None
        if kind is not None:
            self.writes.append(kind)
            wanted = self.trap
            if wanted and wanted.kind == kind and self.writes.count(kind) == wanted.nth and not self.sprung.is_set():
                trap = wanted
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # S3 clients wait a second for it
        body = await request.read()
        if trap is not None and trap.when == "before":
            return self._spring(request)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        url = self.upstream + request.raw_path
        async with self._session.request(
            request.method, URL(url, encoded=True), headers=headers, data=body, allow_redirects=False
        ) as answer:
            if trap is not None:
                await answer.read()
                return self._spring(request)
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=kept)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    def _spring(self, request: web.BaseRequest) -> web.StreamResponse:
        self.kill()
        self.sprung.set()
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("killed")
