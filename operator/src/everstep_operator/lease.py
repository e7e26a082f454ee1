"""Who may act: one holder of a Lease among the replicas, by clocks that only run forward.

The holder counts from the moment before it sent a renewal, everyone else from the moment after they saw it: so the
holder always stops first. `Leadership.check()` stands before each write and needs no event loop: a renewal that hangs
cannot outlive the deadline. A lost Lease ends the process; nothing then has to be undone in memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

log = logging.getLogger(__name__)


class NotLeaderError(Exception):
    """This process does not hold the Lease (any more): it must write nothing."""


class LeaseConflictError(Exception):
    """Somebody else wrote the Lease first."""


class LeaseClient(Protocol):
    """The Lease object in the API. All calls are bounded by `limit` seconds."""

    async def get(self, limit: float) -> dict[str, Any] | None: ...

    async def create(self, spec: dict[str, Any], limit: float) -> None:
        """Raises LeaseConflictError where it exists."""

    async def replace(self, lease: dict[str, Any], limit: float) -> None:
        """Raises LeaseConflictError where its resourceVersion has changed."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. A holder that cannot renew stops acting at `duration - margin`; the others wait for `duration`."""

    duration: float = 15.0
    renew: float = 5.0

    @property
    def margin(self) -> float:
        """For a write that passed the check and is still on its way."""
        return self.duration / 5

    @property
    def retry(self) -> float:
        """Between two looks of a process that waits, and after a renewal that failed."""
        return min(1.0, self.renew / 2)

    @property
    def request(self) -> float:
        """Limit of one request: several renewals must fit before the deadline."""
        return min(self.renew, (self.duration - self.margin) / 3)


class Leadership:
    """Whether this process may act now."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = float("-inf")
        self._held = asyncio.Event()

    @property
    def held(self) -> bool:
        return self._clock() < self._deadline

    @property
    def remaining(self) -> float:
        """Seconds until the right to act ends, unless renewed."""
        return self._deadline - self._clock()

    def check(self) -> None:
        """Raises NotLeaderError unless the Lease is held now."""
        if not self.held:
            raise NotLeaderError("the Lease is not held by this process (any more)")

    async def wait(self) -> None:
        """Return once the Lease is held."""
        await self._held.wait()

    def extend(self, deadline: float) -> None:
        self._deadline = deadline
        self._held.set()

    def give_up(self) -> None:
        self._deadline = float("-inf")
        self._held.clear()


class Elector:
    """Waits for the Lease, renews it, and returns when it is lost."""

    def __init__(
        self,
        client: LeaseClient,
        identity: str,
        leadership: Leadership,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._identity = identity
        self._leadership = leadership
        self._timing = timing or Timing()
        self._clock = clock
        self._sleep = sleep
        self._seen: tuple[str, str] | None = None
        self._seen_at = 0.0

    async def run(self) -> None:
        """Hold the Lease for as long as possible. Returns only when it was held and is lost."""
        try:
            while not await self._try():
                await self._sleep(self._timing.retry)
            log.info("holding the Lease as %s", self._identity)
            while self._leadership.held:
                renewed = await self._try()
                pause = self._timing.renew if renewed else self._timing.retry
                await self._sleep(min(pause, max(0.0, self._leadership.remaining)))
            log.error("lost the Lease: it could not be renewed in time")
        finally:
            held = self._leadership.held
            self._leadership.give_up()
            if held:
                await self._release()

    async def _try(self) -> bool:
        """Take or renew. False: somebody else holds it, or the API server gave no good answer."""
        try:
            asked = self._clock()
            lease = await self._client.get(self._timing.request)
            if lease is None:
                await self._client.create(self._spec(None), self._timing.request)
            else:
                if not self._mine_to_take(lease):
                    if self._leadership.held:
                        log.error("the Lease was taken by %s", lease["spec"].get("holderIdentity"))
                        self._leadership.give_up()
                    return False
                await self._client.replace({**lease, "spec": self._spec(lease["spec"])}, self._timing.request)
        except LeaseConflictError:
            return False
        except Exception as error:  # noqa: BLE001 - no answer is an ordinary end of a try: the deadline decides
            log.warning("the Lease could not be %s: %s", "renewed" if self._leadership.held else "read", error)
            return False
        # From before the requests: others began to count at the earliest when the write was made.
        self._leadership.extend(asked + self._timing.duration - self._timing.margin)
        return True

    def _mine_to_take(self, lease: dict[str, Any]) -> bool:
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity")
        if not holder or holder == self._identity:
            return True
        now = self._clock()
        seen = (str(holder), str(lease["metadata"].get("resourceVersion")))
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
            return False
        return now - self._seen_at > float(spec.get("leaseDurationSeconds") or self._timing.duration)

    def _spec(self, old: dict[str, Any] | None) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old = old or {}
        same = old.get("holderIdentity") == self._identity
        return {
            **old,
            "holderIdentity": self._identity,
            "leaseDurationSeconds": -int(-self._timing.duration // 1),
            "acquireTime": old.get("acquireTime") if same else now,
            "renewTime": now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if same else 1),
        }

    async def _release(self) -> None:
        """Let another replica take over at once."""
        try:
            lease = await self._client.get(self._timing.request)
            if lease is None or lease["spec"].get("holderIdentity") != self._identity:
                return
            spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
            await self._client.replace({**lease, "spec": spec}, self._timing.request)
            log.info("released the Lease")
        except Exception as error:  # noqa: BLE001 - it then runs out by itself
            log.warning("the Lease could not be released: %s", error)
