"""A fence whose answer is late: awaited again by whoever decides the same, and by nobody who decides anew."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everstep.catalog import Catalog
from everstep_operator.act.registers import fence
from everstep_operator.memory import JobMemory
from everstep_operator.reconcile.observation import Problem
from everstep_operator.reconcile.plan import Fence
from everstep_operator.storage import JobStorage, Lane, lanes
from tests.support.observations import OWNER, UID


class Slow:
    """A register whose first fence waits for `answer`."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.calls: list[int] = []

    def fence(self, _owner: Any, at_least: int, *_: Any) -> Catalog:
        self.calls.append(at_least)
        if len(self.calls) == 1:
            self.answer.wait()
        return Catalog(attempt=at_least)


async def test_a_late_fence_answers_no_later_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "TIRED", 30.0)  # a busy machine may keep an answer that long
    register, memory = Slow(), JobMemory(UID)
    lane = Lane("somewhere", 2)
    storage = cast(JobStorage, SimpleNamespace(lane=lane, catalog=register, timeout=0.05))
    assert isinstance(await fence(storage, memory, OWNER, Fence(at_least=2, expected=1)), Problem)
    register.answer.set()
    storage.timeout = 30.0
    again = await fence(storage, memory, OWNER, Fence(at_least=2, expected=1))
    assert isinstance(again, Catalog)
    assert (again.attempt, register.calls) == (2, [2]), "it is never doubled"
    register.answer.clear()
    register.calls.clear()
    storage.timeout = 0.05
    assert isinstance(await fence(storage, memory, OWNER, Fence(at_least=3, expected=2)), Problem)
    register.answer.set()
    storage.timeout = 30.0
    found = await fence(storage, memory, OWNER, Fence(at_least=4, expected=3))
    assert isinstance(found, Catalog)
    assert (found.attempt, register.calls) == (4, [3, 4]), "attempt 3 has come and gone meanwhile"
    lane.close()
