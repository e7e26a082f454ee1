"""How often, and for how long, a request is sent again."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable

import pytest

from everstep.catalog.store import tries as module
from everstep.catalog.store.tries import Tries
from everstep.errors import StorageRefusedError, StorageUnavailableError


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 0.01)


def failing(times: int, error: Exception | None = None) -> Callable[[], int]:
    """Fails so often, then tells how often it was called."""
    calls = 0

    def call() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error or StorageUnavailableError("SlowDown")
        return calls

    return call


def test_a_request_is_tried_as_often_as_allowed() -> None:
    tries = Tries(4)
    assert tries.run(failing(3)) == 4
    assert tries.retries == 3
    with pytest.raises(StorageUnavailableError, match=r"SlowDown \(4 tries in 0\.\d s\)"):
        Tries(4).run(failing(4))
    with pytest.raises(StorageUnavailableError, match=r"\(1 try in"):
        Tries(1).run(failing(1))


def test_what_stays_the_same_is_asked_once() -> None:
    call = failing(1, StorageRefusedError("AccessDenied"))
    with pytest.raises(StorageRefusedError):
        Tries(4).run(call)
    assert call() == 2


def test_patience_goes_beyond_the_number_of_tries_and_ends() -> None:
    assert Tries(1, patience=30).run(failing(20)) == 21
    began = time.monotonic()
    with pytest.raises(StorageUnavailableError):
        Tries(1, patience=0.2).run(failing(10**9))
    assert 0.2 <= time.monotonic() - began < 5


def test_a_success_of_another_part_renews_patience() -> None:
    tries = Tries(1, patience=0.4)
    done = threading.Event()

    def succeed() -> None:
        while not done.wait(0.05):
            tries.run(lambda: None)

    other = threading.Thread(target=succeed)
    other.start()
    until = time.monotonic() + 1

    def call() -> str:
        if time.monotonic() < until:
            raise StorageUnavailableError("503")
        return "stored"

    assert tries.run(call) == "stored"
    done.set()
    other.join()


def test_giving_up_ends_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 1e9)
    monkeypatch.setattr(module, "_jitter", type("Last", (), {"random": staticmethod(lambda: 60.0)}))
    tries = Tries(5)
    threading.Timer(0.2, tries.give_up).start()
    began = time.monotonic()
    with pytest.raises(StorageUnavailableError, match="2 tries"):
        tries.run(failing(10))
    assert time.monotonic() - began < 10


def test_the_scripts_random_numbers_are_its_own() -> None:
    before = random.getstate()
    Tries(4).run(failing(3))
    assert random.getstate() == before


def test_forked_clients_do_not_pause_for_the_same_time() -> None:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(theirs, str(module._jitter.random()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert float(os.read(ours, 100)) != module._jitter.random()
    os.close(ours)
    os.close(theirs)
