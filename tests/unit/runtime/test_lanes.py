"""Lanes: a hung endpoint costs a pass its patience once, is found again when it answers, and never holds up another."""

from __future__ import annotations

import threading
import time

import pytest

from everstep.errors import StorageRefusedError, StorageUnavailableError
from everstep_operator.storage import LaneTimeoutError, lanes
from everstep_operator.storage.lanes import Lanes


async def test_a_call_that_hangs_is_given_up_and_the_next_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "TIRED", 0.05)
    hang = threading.Event()
    lane = Lanes(4).lane("http://dead")
    with pytest.raises(LaneTimeoutError):
        await lane.run(hang.wait, 0.3)
    began = time.monotonic()
    with pytest.raises(LaneTimeoutError):
        await lane.run(hang.wait, 30)
    assert time.monotonic() - began < 5
    hang.set()
    await lane.run(lambda: None, 0.4)
    assert await lane.run(slowly, 5) == "slow but there"


def slowly() -> str:
    time.sleep(0.2)
    return "slow but there"


async def test_a_refusal_is_an_answer_and_silence_is_none() -> None:
    lane = Lanes(2).lane("http://one")
    lane._unanswered = True

    def silent() -> None:
        raise StorageUnavailableError("reset")

    def refused() -> None:
        raise StorageRefusedError("no such bucket")

    with pytest.raises(StorageUnavailableError):
        await lane.run(silent, 5)
    assert lane._unanswered
    with pytest.raises(StorageRefusedError):
        await lane.run(refused, 5)
    assert not lane._unanswered


async def test_removals_do_not_take_the_place_of_a_fence() -> None:
    hang = threading.Event()
    lane = Lanes(1).lane("http://one")
    for _ in range(5):
        lane.submit(hang.wait, "slow")
    assert await lane.run(lambda: "fenced", 5) == "fenced"
    hang.set()


async def test_each_endpoint_has_its_own_lane() -> None:
    hang = threading.Event()
    found = Lanes(1)
    found.lane("http://dead").submit(hang.wait)
    assert await found.lane("http://good").run(lambda: "there", 5) == "there"
    assert found.lane("http://good") is found.lane("http://good")
    hang.set()
    found.close()
