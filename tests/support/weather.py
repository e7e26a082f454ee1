"""Bad weather between a client and a real S3 server: storms of 503, resets, silence, answers cut short, a slow drip.

A test says which requests it strikes and how; everything else passes through.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from aiohttp import web

from tests.support.listener import Listener

Kind = Literal[
    "503", "429", "slow down", "no answer", "reset", "reset in body", "silence", "truncated", "drip", "lost answer"
]  # fmt: skip
_PIECE = 64 << 10
_SLOW_DOWN = "<Error><Code>SlowDown</Code></Error>"


@dataclass(frozen=True)
class Request:
    number: int
    """Of its kind: 0 is the first PUT, the first GET, …"""
    method: str
    target: str
    """Path and query."""

    @property
    def is_part(self) -> bool:
        return "partNumber=" in self.target


class Weather(Listener):
    """`strike` says what befalls a request; None: nothing."""

    def __init__(self, upstream: str, strike: Callable[[Request], Kind | None]) -> None:
        super().__init__(upstream)
        self.strike = strike
        self.seen: list[Request] = []
        self.struck: list[tuple[Request, Kind]] = []
        self._count: dict[str, itertools.count[int]] = {}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        number = next(self._count.setdefault(request.method, itertools.count()))
        seen = Request(number, request.method, request.raw_path)
        self.seen.append(seen)
        kind = self.strike(seen)
        if kind is None:
            return await super().handle(request)
        self.struck.append((seen, kind))
        match kind:
            case "503":
                await request.content.read()
                return web.Response(status=503, text="<html>no server is ready</html>", content_type="text/html")
            case "429":  # other stores' word for it
                await request.content.read()
                text = "<Error><Code>TooManyRequests</Code></Error>"
                return web.Response(status=429, text=text, headers={"Retry-After": "1"})
            case "slow down":  # as S3 does it: the answer comes while the client is still sending
                return web.Response(
                    status=503, text="<Error><Code>SlowDown</Code></Error>", headers={"Connection": "close"}
                )
            case "no answer" | "silence":  # "silence" does not even take the body in
                if kind == "no answer":
                    await request.content.read()
                await asyncio.Event().wait()
            case "reset in body":
                await request.content.read(_PIECE)
            case "lost answer":
                async with self.asked(request, await request.content.read()) as answer:
                    await answer.read()
            case "truncated" | "drip":
                return await self._spoiled(request, kind)
        return self.cut(request)

    async def _spoiled(self, request: web.BaseRequest, kind: Kind) -> web.StreamResponse:
        """The true headers, and not all of the body."""
        async with self.asked(request, await request.content.read()) as answer:
            body = await answer.read()
            response = web.StreamResponse(status=answer.status, headers={"Content-Length": str(len(body))})
            if "Content-Range" in answer.headers:
                response.headers["Content-Range"] = answer.headers["Content-Range"]
            await response.prepare(request)
            await response.write(body[: len(body) // 2])
            while kind == "drip":
                await response.write(b"x")
                await asyncio.sleep(0.2)
            return self.cut(request)
