"""A proxy before the S3 server that strikes once, at the phase of a case, and passes everything else on.

It knows where a run stands by the requests that it sees, and by what the ranks announce of their own accord where no
request tells. Whoever is killed never hears of the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from aiohttp import web

from tests.support.listener import Listener
from tests.survival.matrix import UPLOADING, Case, Phase

STORM_SECONDS = 2.0
RESETS = 2
JITTER = 0.03
"""Seconds within which a kill comes after its phase has begun."""
PEER_SECONDS = 20.0
_SLOW_DOWN = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass(frozen=True)
class Seen:
    """What a request is of a run. `rank`: who sent it, where that is known. `nth`: of its kind, from 1. `commits`: by
    it some step stands."""

    phase: Phase | None
    rank: int | None
    nth: int = 1
    commits: bool = False


Reader = Callable[[str, str, bytes], Seen | None]
"""Names a request by method, path with query, and body; None where it is nothing that matters."""


class Numbered:
    """What readers remember: how many requests of a kind a rank has sent."""

    def __init__(self) -> None:
        self._count: Counter[tuple[Phase | None, int | None]] = Counter()

    def next(self, phase: Phase | None, rank: int | None, commits: bool) -> Seen:
        self._count[phase, rank] += 1
        return Seen(phase, rank, self._count[phase, rank], commits)


class Striker(Listener):
    """Strikes as `case` says, where there is one. `read` has a memory: one for each run."""

    def __init__(self, upstream: str, read: Reader, case: Case | None = None, seed: int = 0) -> None:
        super().__init__(upstream)
        self.case = case
        self.ranks: dict[int, int] = {}
        """Process ids by rank, of the last start."""
        self.helpers: list[int] = []
        """Processes that had a victim for their parent."""
        self.struck: float | None = None
        """When, by time.monotonic()."""
        self.late: int | None = None
        """How the server answered a request whose sender was long dead."""
        self.outage = False
        self._read = read
        self._random = random.Random(seed)
        self._part = self._random.choice((1, 2))
        self._left = RESETS
        self._held: tuple[web.BaseRequest, bytes] | None = None
        self._other_stored = asyncio.Event()
        """The shard of a rank that is not the victim is there."""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.startswith("/-/"):
            return await self._announced(request)
        body = await request.content.read()
        path = unquote(request.raw_path)
        seen = self._read(request.method, path, body)
        if self.case is not None and seen is not None and self.struck is None and self._is_it(self.case, seen):
            self.struck = time.monotonic()
            self.outage = self.case.fault == "outage"
            return await self._strike(self.case, request, body, seen)
        if self._storming():
            return self._refusal()
        if self.case is not None and self.case.fault == "reset" and self.struck is not None and self._left > 0:
            self._left -= 1
            return self.cut(request)
        answer = await self.passed_on(request, body)
        if seen is not None:
            await self._passed(seen)
        return answer

    # when

    def _is_it(self, case: Case, seen: Seen) -> bool:
        if case.phase == "step saved again":
            return seen.phase == "part stored" and seen.rank == case.victim
        if case.phase in ("removal", "removal half done"):
            return seen.phase == "removal" and seen.nth == (1 if case.phase == "removal" else 2)
        if case.phase == "swap unanswered":
            return seen.phase == "swap sent"
        if seen.phase != case.phase:
            return False
        of_victim = case.victim is None or seen.rank == case.victim or seen.rank is None
        if seen.phase == "part stored":
            return of_victim and (seen.nth == self._part or case.victim is None)
        return of_victim or seen.phase not in ("upload begun", "upload completing")

    async def _announced(self, request: web.BaseRequest) -> web.StreamResponse:
        phase, rank = request.path.removeprefix("/-/"), int(request.query["rank"])
        if phase == "start":
            self.ranks[rank] = int(request.query["pid"])
        case = self.case
        mine = case is not None and case.phase == phase == "staging" and rank == case.victim
        if case is not None and mine and self.struck is None and request.query["save"] == "2":
            self.struck = time.monotonic()
            await asyncio.sleep(self._random.random() * JITTER)
            self._kill(case)
        return web.Response()

    # what

    async def _strike(self, case: Case, request: web.BaseRequest, body: bytes, seen: Seen) -> web.StreamResponse:
        if case.victim is not None:
            return await self._strike_by_kill(case, request, body, seen)
        match case.fault:
            case "503" | "slow down" | "outage":
                return self._refusal()
            case "stall":
                await asyncio.Event().wait()
            case "lost answer":
                async with self.asked(request, body) as answer:
                    await answer.read()
        return self.cut(request)

    async def _strike_by_kill(
        self, case: Case, request: web.BaseRequest, body: bytes, seen: Seen
    ) -> web.StreamResponse:
        late = "late" in case.fault
        sender_dies = seen.rank == case.victim and ("uploader" not in case.fault or seen.phase in UPLOADING)
        if case.phase == "step saved again":  # what the victim leaves is then new on one side and old on the other
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._other_stored.wait(), PEER_SECONDS)
        if case.phase in ("upload begun", "part stored", "swap unanswered") and not late:
            async with self.asked(request, body) as answer:
                await answer.read()
                self._kill(case)
                return self.cut(request) if sender_dies else await self.streamed(request, answer)
        await asyncio.sleep(self._random.random() * JITTER)
        self._kill(case)
        if not sender_dies:
            return await self.passed_on(request, body)
        if late:
            self._held = (request, body)
        return self.cut(request)

    async def _passed(self, seen: Seen) -> None:
        of_other = self.case is not None and seen.rank != self.case.victim
        if of_other and seen.phase == "upload completing":
            self._other_stored.set()
        if seen.commits:
            await self._deliver()

    async def _deliver(self) -> None:
        """What was on its way when its sender died arrives when the next gang has committed its first save."""
        if self._held is not None:
            (request, body), self._held = self._held, None
            async with self.asked(request, body) as answer:
                await answer.read()
                self.late = answer.status

    def clear_up(self, read: Reader) -> None:
        """For the next gang, which nothing befalls but what was on its way to the server."""
        self.case, self._read, self.ranks = None, read, {}

    def _kill(self, case: Case) -> None:
        assert case.victim is not None
        rank = self.ranks[case.victim]
        if not self.helpers:
            self.helpers = children(rank)
        for pid in self.helpers if "uploader" in case.fault else [rank]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _storming(self) -> bool:
        if self.outage:
            return True
        storm = self.case is not None and self.case.fault in ("503", "slow down")
        return storm and self.struck is not None and time.monotonic() < self.struck + STORM_SECONDS

    def _refusal(self) -> web.StreamResponse:
        if self.case is not None and self.case.fault == "slow down":
            return web.Response(
                status=503, text=_SLOW_DOWN, content_type="application/xml", headers={"Retry-After": "1"}
            )
        return web.Response(status=503, text="<html>no server is ready</html>", content_type="text/html")


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
