"""The Lease: never two holders, a deadline that a hung renewal cannot outlive, and a quick hand-over."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

from everstep_operator.lease import Elector, Leadership, LeaseConflictError, NotLeaderError, Timing

TIMING = Timing(duration=10.0, renew=2.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


class Api:
    """One Lease with optimistic locking. `down` makes each request fail after its time-out."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.lease: dict[str, Any] | None = None
        self.down = False
        self.version = 0

    async def _answer(self, limit: float) -> None:
        if self.down:
            await self.clock.sleep(limit)
            raise TimeoutError("no answer")

    async def get(self, limit: float) -> dict[str, Any] | None:
        await self._answer(limit)
        return copy.deepcopy(self.lease)

    async def create(self, spec: dict[str, Any], limit: float) -> None:
        await self._answer(limit)
        if self.lease is not None:
            raise LeaseConflictError
        self._store(spec)

    async def replace(self, lease: dict[str, Any], limit: float) -> None:
        await self._answer(limit)
        if self.lease is None or lease["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise LeaseConflictError
        self._store(lease["spec"])

    def _store(self, spec: dict[str, Any]) -> None:
        self.version += 1
        self.lease = {"metadata": {"resourceVersion": str(self.version)}, "spec": spec}

    @property
    def holder(self) -> str:
        assert self.lease is not None
        return str(self.lease["spec"]["holderIdentity"])


def replica(api: Api, clock: Clock, name: str) -> tuple[Elector, Leadership]:
    leadership = Leadership(clock)
    return Elector(api, name, leadership, TIMING, clock, clock.sleep), leadership


async def test_the_first_replica_takes_a_lease_that_does_not_exist() -> None:
    clock = Clock()
    api = Api(clock)
    elector, leadership = replica(api, clock, "a")
    with pytest.raises(NotLeaderError):
        leadership.check()
    assert await elector._try()
    leadership.check()
    assert api.holder == "a"


async def test_another_replica_waits_for_the_whole_duration_after_the_last_renewal_that_it_saw() -> None:
    clock = Clock()
    api = Api(clock)
    first, held = replica(api, clock, "a")
    second, waiting = replica(api, clock, "b")
    assert await first._try()
    assert not await second._try()
    clock.now += 9
    assert await first._try()  # renewed: the count begins anew
    clock.now += 2
    assert not await second._try()
    clock.now += 10
    assert not held.held
    assert not await second._try()
    clock.now += 0.5
    assert await second._try()
    assert waiting.held
    assert api.lease is not None
    assert api.lease["spec"]["leaseTransitions"] == 2


async def test_the_holder_stops_before_anyone_else_can_begin() -> None:
    clock = Clock()
    api = Api(clock)
    first, held = replica(api, clock, "a")
    second, waiting = replica(api, clock, "b")
    assert await first._try()
    assert not await second._try()
    for _ in range(200):
        clock.now += 0.1
        await second._try()
        assert not (held.held and waiting.held)
    assert waiting.held


async def test_a_renewal_that_hangs_does_not_outlive_the_deadline() -> None:
    clock = Clock()
    api = Api(clock)
    elector, leadership = replica(api, clock, "a")
    assert await elector._try()
    api.down = True
    deadline = 100 + TIMING.duration - TIMING.margin
    while clock.now < deadline:
        leadership.check()
        assert not await elector._try()
    with pytest.raises(NotLeaderError):
        leadership.check()


async def test_run_returns_when_the_lease_is_lost() -> None:
    clock = Clock()
    api = Api(clock)
    elector, leadership = replica(api, clock, "a")
    runner = asyncio.create_task(elector.run())
    await leadership.wait()
    api.down = True
    async with asyncio.timeout(5):
        await runner
    assert not leadership.held


async def test_a_clean_end_hands_over_at_once() -> None:
    clock = Clock()
    api = Api(clock)
    elector, leadership = replica(api, clock, "a")
    runner = asyncio.create_task(elector.run())
    await leadership.wait()
    runner.cancel()
    await asyncio.wait([runner])
    assert api.holder == ""
    assert not leadership.held
    other, taken = replica(api, clock, "b")
    assert await other._try()
    assert taken.held


async def test_a_restarted_container_has_its_own_lease_back_at_once() -> None:
    clock = Clock()
    api = Api(clock)
    before, _ = replica(api, clock, "pod-a_uid-a")
    assert await before._try()
    clock.now += 1  # killed, and started again in the same pod
    after, leadership = replica(api, clock, "pod-a_uid-a")
    other, _ = replica(api, clock, "pod-b_uid-b")
    assert not await other._try()
    assert await after._try()
    assert leadership.held


async def test_losing_a_race_is_not_holding() -> None:
    clock = Clock()
    api = Api(clock)
    elector, leadership = replica(api, clock, "a")
    get = api.get

    async def get_then_lose(limit: float) -> dict[str, Any] | None:
        found = await get(limit)
        if api.version == 0:
            api._store({"holderIdentity": "b", "leaseDurationSeconds": 10})
        return found

    api.get = get_then_lose  # type: ignore[method-assign]
    assert not await elector._try()
    assert not leadership.held
    assert api.holder == "b"
