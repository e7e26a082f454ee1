"""What every store must do, whatever it is made of: one suite, real storage."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from everstep.catalog import UNCHANGED, Store
from everstep.catalog.store import KeyNotFound, SwapRefused, Versioned
from everstep.catalog.store.probe import probe
from everstep.catalog.sums import block_sums
from everstep.errors import InvalidOperationError

KEY = "catalog.json"
RACERS = 8
MEGABYTE = 1 << 20


def read(store: Store) -> Versioned:
    found = store.read_register(KEY)
    assert isinstance(found, Versioned)
    return found


def test_an_absent_register_is_none(store: Store) -> None:
    assert store.read_register(KEY) is None
    assert store.read_register(KEY, known="1") is None


def test_swaps_form_a_chain(store: Store) -> None:
    token = store.swap_register(KEY, b"one", None)
    assert read(store) == Versioned(b"one", token)
    second = store.swap_register(KEY, b"two", token)
    assert second != token
    assert read(store) == Versioned(b"two", second)


def test_a_known_version_is_not_sent_again(store: Store) -> None:
    token = store.swap_register(KEY, b"one", None)
    assert store.read_register(KEY, known=token) is UNCHANGED
    store.swap_register(KEY, b"two", token)
    assert isinstance(store.read_register(KEY, known=token), Versioned)


def test_an_existing_register_is_not_created(store: Store) -> None:
    store.swap_register(KEY, b"one", None)
    with pytest.raises(SwapRefused):
        store.swap_register(KEY, b"two", None)
    assert read(store).body == b"one"


def test_a_stale_token_is_refused(store: Store) -> None:
    token = store.swap_register(KEY, b"one", None)
    store.swap_register(KEY, b"two", token)
    with pytest.raises(SwapRefused):
        store.swap_register(KEY, b"three", token)
    assert read(store).body == b"two"


def test_a_token_without_a_register_is_refused(store: Store) -> None:
    with pytest.raises(SwapRefused):
        store.swap_register(KEY, b"one", "7007007")
    assert store.read_register(KEY) is None


@pytest.mark.parametrize("existing", [False, True])
def test_of_racing_writers_one_wins(store: Store, existing: bool) -> None:
    token = store.swap_register(KEY, b"before", None) if existing else None

    def swap(number: int) -> bool:
        try:
            store.swap_register(KEY, b"writer %d" % number, token)
        except SwapRefused:
            return False
        return True

    with ThreadPoolExecutor(RACERS) as pool:
        won = list(pool.map(swap, range(RACERS)))
    assert won.count(True) == 1
    assert read(store).body == b"writer %d" % won.index(True)


def test_every_increment_counts(store: Store) -> None:
    """Writers that lose read again and go on: no increment is lost, none counts twice."""
    store.swap_register(KEY, b"0", None)

    def increment(_: int) -> None:
        while True:
            now = read(store)
            try:
                store.swap_register(KEY, b"%d" % (int(now.body) + 1), now.token)
            except SwapRefused:
                continue
            return

    with ThreadPoolExecutor(RACERS) as pool:
        list(pool.map(increment, range(40)))
    assert read(store).body == b"40"


def test_objects_are_written_read_and_deleted(store: Store) -> None:
    store.put("checkpoints/a/x", b"0123456789")
    assert store.get("checkpoints/a/x") == b"0123456789"
    assert store.get_range("checkpoints/a/x", 2, 3) == b"234"
    assert store.get_range("checkpoints/a/x", 8, 10) == b"89"
    store.delete(["checkpoints/a/x", "checkpoints/a/never"])
    with pytest.raises(KeyNotFound):
        store.get("checkpoints/a/x")
    with pytest.raises(KeyNotFound):
        store.get_range("checkpoints/a/x", 0, 1)


def test_an_object_that_is_too_long_is_refused_unread(store: Store) -> None:
    store.put("progress/1", b"x" * 100)
    with pytest.raises(InvalidOperationError, match="100 bytes"):
        store.get("progress/1", limit=99)


def test_an_object_may_be_a_view_of_other_memory(store: Store) -> None:
    store.put("checkpoints/a/x", memoryview(bytearray(b"abcdef"))[1:4])
    assert store.get("checkpoints/a/x") == b"bcd"


def test_a_range_is_read_into_the_callers_memory(store: Store) -> None:
    store.put("checkpoints/a/x", b"0123456789")
    memory = bytearray(b"..........")
    assert store.read_into("checkpoints/a/x", 2, memoryview(memory)[1:5]) == 4
    assert memory == b".2345....."
    assert store.read_into("checkpoints/a/x", 8, memoryview(memory)[:4]) == 2
    assert memory == b"89345....."
    assert store.read_into("checkpoints/a/x", 10, memoryview(memory)) == 0
    assert store.read_into("checkpoints/a/x", 99, memoryview(memory)) == 0
    assert store.read_into("checkpoints/a/x", 0, memoryview(memory)[:0]) == 0
    with pytest.raises(KeyNotFound):
        store.read_into("checkpoints/a/never", 0, memoryview(memory))


@pytest.mark.parametrize("size", [64 * MEGABYTE, 64 * MEGABYTE + 1, 97 * MEGABYTE + 5])
@pytest.mark.parametrize("summed", [True, False], ids=["sums", "no sums"])
def test_an_object_of_any_size(store: Store, size: int, summed: bool) -> None:
    body = bytearray(random.Random(size).randbytes(MEGABYTE) * (size // MEGABYTE + 1))
    for megabyte in range(0, size, MEGABYTE):  # every part is another: none may take another's place
        body[megabyte : megabyte + 4] = megabyte.to_bytes(4, "big")
    view = memoryview(body)[:size]
    store.put("checkpoints/a/large", view, block_sums(view) if summed else ())
    assert [info.size for info in store.list("checkpoints/a/")] == [size]
    back = memoryview(bytearray(size + 10))
    assert store.read_into("checkpoints/a/large", 0, back) == size
    assert back[:size] == view
    assert store.get_range("checkpoints/a/large", size - 7, 100) == view[-7:]


def test_an_empty_object(store: Store) -> None:
    store.put("checkpoints/a/x", b"")
    assert store.get("checkpoints/a/x") == b""


def test_listing_is_by_prefix_and_in_order(store: Store) -> None:
    for key in ("checkpoints/b/2", "checkpoints/a/1", "checkpoints/ab/3", "progress/1"):
        store.put(key, b"x")
    assert [info.key for info in store.list("checkpoints/a/")] == ["checkpoints/a/1"]
    assert [info.key for info in store.list("checkpoints/")] == [
        "checkpoints/a/1",
        "checkpoints/ab/3",
        "checkpoints/b/2",
    ]
    assert [info.size for info in store.list("progress/")] == [1]
    assert list(store.list_folders("checkpoints/")) == ["checkpoints/a", "checkpoints/ab", "checkpoints/b"]
    assert list(store.list_folders("nothing/")) == []


def test_a_listing_longer_than_a_page(store: Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: store.put(f"checkpoints/a/{n:05}", b""), range(1100)))
    assert sum(1 for _ in store.list("checkpoints/a/")) == 1100
    store.delete([info.key for info in store.list("checkpoints/a/")])
    assert list(store.list("checkpoints/")) == []


def test_a_plain_object_is_polled_by_its_token(store: Store) -> None:
    store.put("progress/000001.json", b"1")
    first = store.read_register("progress/000001.json")
    assert isinstance(first, Versioned)
    assert store.read_register("progress/000001.json", known=first.token) is UNCHANGED
    store.put("progress/000001.json", b"2")
    second = store.read_register("progress/000001.json", known=first.token)
    assert isinstance(second, Versioned)
    assert second.body == b"2"


def test_unfinished_uploads_end(store: Store) -> None:
    assert store.abort_uploads("checkpoints/", datetime.now(UTC) + timedelta(days=1)) == 0


def test_the_probe_trusts_it_and_leaves_nothing(store: Store) -> None:
    probe(store)
    assert list(store.list("")) == []
