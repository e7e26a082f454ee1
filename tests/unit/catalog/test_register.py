from __future__ import annotations

import time
from pathlib import Path

import pytest

from everstep.catalog.documents import Catalog
from everstep.catalog.register import Backoff, Register
from everstep.catalog.store import SwapUnanswered, Unchanged, Versioned
from everstep.catalog.store.posix import PosixStore
from everstep.errors import InvalidOperationError, StorageUnavailableError


@pytest.mark.parametrize("reads", ["hang too", "are answered"])
def test_a_store_that_hangs_ends_a_swap_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: str) -> None:
    clock = [0.0]
    swaps = 0
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    class Hanging(PosixStore):
        def swap_register(self, key: str, body: bytes, token: str | None) -> str:
            nonlocal swaps
            swaps += 1
            clock[0] += 30
            raise SwapUnanswered("time-out")

        def read_register(self, key: str, known: str | None = None) -> None:
            if swaps and reads == "hang too":
                clock[0] += 120
                raise StorageUnavailableError("time-out")

    register = Register(Hanging(tmp_path), backoff=Backoff(seconds=180), sleep=lambda _: None)
    with pytest.raises(StorageUnavailableError):
        register.swap(lambda _: Catalog(attempt=1))
    assert clock[0] <= 300


@pytest.mark.parametrize("changed", [False, True])
def test_a_swap_begins_with_what_is_known_and_reads_again_where_that_is_old(tmp_path: Path, changed: bool) -> None:
    reads = []

    class Counting(PosixStore):
        def read_register(self, key: str, known: str | None = None) -> Versioned | Unchanged | None:
            reads.append(key)
            return super().read_register(key, known)

    register = Register(Counting(tmp_path), sleep=lambda _: None)
    register.swap(lambda _: Catalog(attempt=1))
    known = register.read()
    assert known is not None
    if changed:
        register.swap(lambda found: Catalog(attempt=2, generation=found.generation if found else 0))
    reads.clear()
    told = []

    def decide(found: Catalog | None) -> Catalog:
        assert found is not None
        told.append(found.attempt)
        return found.model_copy(update={"epoch": 7})

    assert register.swap(decide, known=known).epoch == 7
    assert (told, len(reads)) == (([1, 2], 1) if changed else ([1], 0))


@pytest.mark.parametrize("since", [True, False])
def test_what_was_impossible_by_what_is_known_is_decided_by_what_stands_now(tmp_path: Path, since: bool) -> None:
    register = Register(PosixStore(tmp_path), sleep=lambda _: None)
    register.swap(lambda _: Catalog(attempt=1))
    known = register.read()
    told: list[int] = []
    if since:
        register.swap(lambda found: (found or Catalog()).model_copy(update={"attempt": 2}))

    def decide(found: Catalog | None) -> Catalog:
        assert found is not None
        told.append(found.attempt)
        if found.attempt < 2:
            raise InvalidOperationError("not now")
        return found.model_copy(update={"epoch": 7})

    if since:
        assert register.swap(decide, known=known).epoch == 7
        assert told == [1, 2]
    else:
        with pytest.raises(InvalidOperationError, match="not now"):
            register.swap(decide, known=known)
        assert told == [1, 1]
