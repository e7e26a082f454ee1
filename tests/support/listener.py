"""An HTTP server on the way to another, in a thread of its own: what the proxies of the tests stand on.

Bytes pass through unchanged, the Host header too: it is part of what S3 clients sign.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import AsyncIterator
from typing import Self

import aiohttp
from aiohttp import web
from yarl import URL

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect"})
_NOT_OURS = ("User-Agent", "Content-Type", "Accept", "Accept-Encoding")


class Listener:
    """`with Listener(upstream) as it:` listens on a free port of `address`, at `it.url`. A subclass says what happens
    to a request in `handle`.
    """

    def __init__(
        self,
        upstream: str,
        address: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        *,
        server_tls: ssl.SSLContext | None = None,
        port: int = 0,
    ) -> None:
        """`tls` verifies the other server; with `server_tls` this one speaks TLS itself."""
        self.upstream = upstream
        self.address = address
        self.port = port
        self._tls = tls
        self._server_tls = server_tls

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self.passed_on(request, await request.content.read())

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="listener", daemon=True)
        self._thread.start()
        if not started.wait(10):
            raise RuntimeError(f"nothing listens on {self.address}")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"{'https' if self._server_tls else 'http'}://{self.address}:{self.port}"

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))

    async def _serve(self, started: threading.Event) -> None:
        self._end = asyncio.Event()
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls or True, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            skip_auto_headers=_NOT_OURS,
        ) as self._session:
            runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, self.address, self.port, ssl_context=self._server_tls).start()
            self.port = runner.addresses[0][1]
            started.set()
            await self._end.wait()
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # S3 clients wait a second for it
        return await self.handle(request)

    @contextlib.asynccontextmanager
    async def asked(self, request: web.BaseRequest, body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        """What the other server answers; its body is read by the caller."""
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        target = request.raw_path  # with the host in it where this is the client's proxy
        url = URL(target if "://" in target else self.upstream + target, encoded=True)
        async with self._session.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as answer:
            yield answer

    async def passed_on(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        async with self.asked(request, body) as answer:
            return await self.streamed(request, answer)

    @staticmethod
    async def streamed(request: web.BaseRequest, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=kept)
        with contextlib.suppress(ConnectionError):  # the client may be dead by now
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
        return response

    @staticmethod
    def cut(request: web.BaseRequest) -> web.StreamResponse:
        """Nobody hears of this request any more."""
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("cut")
