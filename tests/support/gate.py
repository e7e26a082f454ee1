"""A gate before an S3 server: it sees each request of pods and operator, may hold one, and may lose it or its answer.

It is how a test strikes at an exact moment of a save without any hook in the product. Bytes pass through unchanged: the
Host header is part of what S3 clients sign.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote

import aiohttp
from aiohttp import web
from yarl import URL

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect"})


@dataclass(frozen=True)
class Write:
    """A PUT as it arrived. `key` is below the bucket, `peer` the sender's address."""

    key: str
    body: bytes
    peer: str


class Watcher(Protocol):
    """Decides about writes. `before` and `after` run in a thread of their own and may block: the client waits."""

    def wants(self, write: Write) -> bool:
        """Quick: whether the two others are asked at all."""

    def before(self, write: Write) -> bool:
        """False: the request is lost before it reaches the server."""

    def after(self, write: Write) -> bool:
        """The server has answered. False: the answer is lost."""


class Gate:
    """`with Gate(upstream, address) as gate:` listens on a free port of `address` and forwards to `upstream`."""

    def __init__(self, upstream: str, address: str) -> None:
        self.upstream = upstream
        self.address = address
        self.watcher: Watcher | None = None

    def __enter__(self) -> Gate:
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="gate", daemon=True)
        self._thread.start()
        if not started.wait(10):
            raise RuntimeError(f"the gate does not listen on {self.address}")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self._port}"

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))

    async def _serve(self, started: threading.Event) -> None:
        self._end = asyncio.Event()
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
        ) as self._session:
            runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, self.address, 0).start()
            self._port = runner.addresses[0][1]
            started.set()
            await self._end.wait()
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # S3 clients wait a second for it
        body = await request.content.read()  # request.read() would refuse more than a megabyte
        watcher, write = self.watcher, None
        if watcher is not None and request.method == "PUT":
            path = unquote(request.raw_path.partition("?")[0])
            write = Write(path.lstrip("/").partition("/")[2], body, request.remote or "")
            if not watcher.wants(write):
                write = None
        if watcher is not None and write is not None and not await asyncio.to_thread(watcher.before, write):
            return self._cut(request)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        async with self._session.request(
            request.method,
            URL(self.upstream + request.raw_path, encoded=True),
            headers=headers,
            data=body,
            allow_redirects=False,
        ) as answer:
            if watcher is not None and write is not None:
                await answer.read()
                if not await asyncio.to_thread(watcher.after, write):
                    return self._cut(request)
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=kept)
            with contextlib.suppress(ConnectionError):  # the client may be dead by now
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
            return response

    def _cut(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)
