"""A gate before an S3 server: it sees each request of pods and operator, may hold one, and may lose it or its answer.

It is how a test strikes at an exact moment of a save without any hook in the product. Bytes pass through unchanged: the
Host header is part of what S3 clients sign.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote

from aiohttp import web

from tests.support.listener import Listener


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


class Gate(Listener):
    """`with Gate(upstream, address) as gate:` listens on a free port of `address` and forwards to `upstream`."""

    def __init__(self, upstream: str, address: str) -> None:
        super().__init__(upstream, address)
        self.watcher: Watcher | None = None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()  # request.read() would refuse more than a megabyte
        watcher, write = self.watcher, None
        if watcher is not None and request.method == "PUT":
            path = unquote(request.raw_path.partition("?")[0])
            write = Write(path.lstrip("/").partition("/")[2], body, request.remote or "")
            if not watcher.wants(write):
                write = None
        if watcher is not None and write is not None and not await asyncio.to_thread(watcher.before, write):
            return self.cut(request)
        async with self.asked(request, body) as answer:
            if watcher is not None and write is not None:
                await answer.read()
                if not await asyncio.to_thread(watcher.after, write):
                    return self.cut(request)
            return await self.streamed(request, answer)
