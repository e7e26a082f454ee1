"""What a pass remembers of one that came to nothing."""

from __future__ import annotations

from typing import Any, cast

import pytest

from everstep_operator.act import StaleError
from everstep_operator.health import Health
from everstep_operator.kube import ApiError
from everstep_operator.memory import JobMemory, Key, Memories
from everstep_operator.metrics import Metrics
from everstep_operator.queue import Outcome
from everstep_operator.reconcile import decide
from everstep_operator.reconcile.observation import Observation
from everstep_operator.reconciler import LONGEST_PAUSE, Reconciler
from tests.support.observations import UID, beat, committed, job, observe, pod, running

KEY: Key = ("default", "job")


class Observer:
    """An API server that answers with `error` when the job is asked for, and registers that tell of nothing new."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.looks = 0

    async def job(self, _key: Key) -> Any:
        self.looks += 1
        raise self.error

    async def again(self, last: Observation, _memory: JobMemory) -> Observation:
        return last


def reconciler(observer: Observer, memories: Memories) -> Reconciler:
    parts: Any = cast(Any, None)
    return Reconciler(
        parts, cast(Any, observer), parts, parts, parts, memories, Metrics(), Health(leading=lambda: True)
    )


def remembered() -> Memories:
    """Of a gang that runs, whose last whole look was a moment ago."""
    memories = Memories()
    memory = memories.of(KEY, UID)
    seen = observe(job(running()), pod(0), pod(1), catalog=committed(30), heartbeat=beat(31))
    memory.last = seen.written(decide(seen).status)
    memory.looked = float("inf")
    return memories


async def test_a_change_is_looked_at_though_the_first_look_at_it_came_to_nothing() -> None:
    memories, observer = remembered(), Observer(ApiError(500, "", "no"))
    handle = reconciler(observer, memories)
    assert isinstance(await handle(KEY), Outcome)
    assert observer.looks == 0, "nothing has changed: the registers are enough"
    memories.stir(KEY)
    for looks in (1, 2):
        with pytest.raises(ApiError):
            await handle(KEY)
        assert observer.looks == looks


async def test_what_is_stale_again_and_again_waits_longer_each_time() -> None:
    memories = remembered()
    memories.stir(KEY)
    handle = reconciler(Observer(StaleError("changed")), memories)
    pauses = [(await handle(KEY)).again_after or 0.0 for _ in range(20)]
    assert pauses[:3] == [0.0, 0.0, 0.0]
    assert sorted(pauses) == pauses
    assert (pauses[3] > 0, pauses[-1]) == (True, LONGEST_PAUSE)
