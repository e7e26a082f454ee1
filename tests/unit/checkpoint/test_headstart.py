"""The front of a file that is fetched while it is being found out what is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from everstep.catalog.manifest import BLOCK
from everstep.catalog.store import KeyNotFound
from everstep.catalog.store.posix import PosixStore
from everstep.checkpoint.blocks import describe_file, matching
from everstep.checkpoint.restoring.dividing import Needs, Piece, divide
from everstep.checkpoint.restoring.headstart import HeadStart, few_steps, front
from everstep.checkpoint.restoring.reader import SavedShards
from everstep.checkpoint.restoring.restoration import has_own_file
from everstep.checkpoint.saving.layout import shard_name

from .conftest import Job

CONTENT = bytes(range(256)) * 64
STEPS = (1000, 2000, 4000)


class Server:
    """A file of which every request waits until it is let through."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.asked: list[tuple[int, int]] = []
        self.answering = threading.Event()
        self._asked = threading.Condition()

    def read(self, start: int, into: memoryview) -> int:
        with self._asked:
            self.asked.append((start, len(into)))
            self._asked.notify_all()
        assert self.answering.wait(30)
        found = self.content[start : start + len(into)]
        into[: len(found)] = found
        return len(found)

    def until_asked(self, count: int) -> None:
        with self._asked:
            assert self._asked.wait_for(lambda: len(self.asked) >= count, 30)


def copied(ahead: HeadStart, start: int, length: int) -> bytes:
    into = bytearray(length)
    return bytes(into[: ahead.copy(start, memoryview(into))])


def test_what_is_on_its_way_is_waited_for_and_nothing_more_is_begun() -> None:
    server = Server()
    ahead = HeadStart(server.read, len(CONTENT), STEPS)
    server.until_asked(2)
    assert ahead.stop() == 3000, "two requests are under way"
    server.answering.set()
    assert copied(ahead, 500, 9000) == CONTENT[500:3000]
    assert copied(ahead, 3000, 10) == b""
    assert sorted(server.asked) == [(0, 1000), (1000, 2000)]


def test_all_of_it_may_be_here_and_is_read_in_any_order() -> None:
    server = Server()
    server.answering.set()
    ahead = HeadStart(server.read, len(CONTENT), STEPS)
    server.until_asked(3)
    for start, length in ((6990, 100), (0, 10), (999, 2), (0, 7000), (2999, 2)):
        assert copied(ahead, start, length) == CONTENT[start : min(start + length, 7000)]
    assert ahead.stop() == 7000
    assert sorted(server.asked) == [(0, 1000), (1000, 2000), (3000, 4000)]


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 3000, 6999, 7000])
def test_not_a_byte_is_asked_for_that_the_file_does_not_have(size: int) -> None:
    server = Server(CONTENT[:size])
    server.answering.set()
    ahead = HeadStart(server.read, size, STEPS)
    server.until_asked(1 + (size > 1000) + (size > 3000))
    assert copied(ahead, 0, 8000) == CONTENT[:size]
    assert sum(length for _, length in server.asked) == size
    assert ahead.stop() == size


@pytest.mark.parametrize("error", [KeyNotFound("__7_0.distcp"), RuntimeError("anything"), MemoryError()])
def test_what_fails_is_left_to_whoever_needs_it(error: BaseException) -> None:
    tried = threading.Event()

    def read(start: int, into: memoryview) -> int:
        if start:
            assert tried.wait(30)
            return len(into)
        tried.set()
        raise error

    ahead = HeadStart(read, len(CONTENT), STEPS)
    assert tried.wait(30)
    assert copied(ahead, 0, 10) == b""
    assert ahead.stop() == 0, "what lies behind is not at the front"


def test_a_file_that_is_shorter_than_was_said_counts_up_to_the_last_whole_step() -> None:
    server = Server(CONTENT[:2000])
    server.answering.set()
    ahead = HeadStart(server.read, len(CONTENT), STEPS)
    server.until_asked(2)
    assert copied(ahead, 0, 8000) == CONTENT[:2000]
    assert ahead.stop() == 1000


def test_only_whole_blocks_that_were_committed_count() -> None:
    body = bytes(3 * BLOCK + 17)
    file = describe_file("__0_0.distcp", body)
    for length, whole in (
        (0, 0),
        (BLOCK - 1, 0),
        (BLOCK + 5, BLOCK),
        (len(body) - 1, 3 * BLOCK),
        (len(body), len(body)),
    ):
        assert matching(file, 0, memoryview(body), length) == whole
    assert matching(file, 3 * BLOCK, memoryview(bytes(17)), 17) == 17
    for position, whole in ((0, 0), (BLOCK, BLOCK), (3 * BLOCK + 16, 3 * BLOCK)):
        damaged = bytearray(body)
        damaged[position] ^= 1
        assert matching(file, 0, memoryview(damaged), len(damaged)) == whole


def test_who_has_it_already_fetches_it_for_the_others() -> None:
    whole: Needs = {0: [(0, 64 * BLOCK)], 1: [(0, 8 * BLOCK)]}
    divisions = [divide([whole, whole], rank, 4 * BLOCK, ahead=[None, (0, 16 * BLOCK)]) for rank in range(2)]
    assert divisions[0].rounds == divisions[1].rounds
    pieces = [piece for pieces in divisions[0].rounds for piece in pieces]
    assert all(piece.reader == 1 for piece in pieces if piece.file == 0 and piece.end <= 16 * BLOCK)
    shares = [sum(piece.end - piece.start for piece in pieces if piece.reader == rank) for rank in range(2)]
    assert shares == [36 * BLOCK, 36 * BLOCK], "the other one has the more to fetch of the rest"


def test_who_has_what_another_needs_alone_hands_it_on() -> None:
    needs: list[Needs] = [{0: [(0, 24 * BLOCK)]}, {1: [(0, 8 * BLOCK)]}]
    divisions = [divide(needs, rank, ahead=[(1, 4 * BLOCK), (0, 16 * BLOCK)]) for rank in range(2)]
    assert [[(piece.file, piece.start, piece.end) for piece in division.own] for division in divisions] == [
        [(0, 16 * BLOCK, 24 * BLOCK)],
        [(1, 4 * BLOCK, 8 * BLOCK)],
    ]
    handed = [Piece(0, 0, 16 * BLOCK, 1, (0, 1)), Piece(1, 0, 4 * BLOCK, 0, (0, 1))]
    assert [division.rounds for division in divisions] == [[handed], [handed]]


def test_who_needs_what_it_has_keeps_it_to_itself() -> None:
    division = divide([{0: [(0, 16 * BLOCK)]}, {}], 0, ahead=[(0, 4 * BLOCK), (0, 8 * BLOCK)])
    assert [(piece.start, piece.end) for piece in division.own] == [(0, 4 * BLOCK), (8 * BLOCK, 16 * BLOCK)]
    assert division.rounds == [[Piece(0, 4 * BLOCK, 8 * BLOCK, 1, (0, 1))]]


def test_small_neighbours_are_not_fetched_together_across_what_is_there() -> None:
    mine: Needs = {0: [(at * BLOCK, (at + 1) * BLOCK) for at in range(0, 8, 2)]}
    yours: Needs = {0: [(at * BLOCK, (at + 1) * BLOCK) for at in range(1, 8, 2)]}
    division = divide([mine, yours], 0, ahead=[None, (0, 3 * BLOCK)])
    pieces = [piece for pieces in division.rounds for piece in pieces]
    assert {piece.start: piece.reader for piece in pieces if piece.end <= 3 * BLOCK} == {0: 1, BLOCK: 1, 2 * BLOCK: 1}
    assert {piece.reader for piece in pieces if piece.start >= 3 * BLOCK} == {0}, "who has less to fetch"


def test_of_little_nothing_is_fetched_ahead_for_others() -> None:
    assert few_steps(15 << 20) == []
    assert few_steps(16 << 20) == [4 << 20]
    assert few_steps(1 << 30) == [4 << 20, 4 << 20, 8 << 20]


@pytest.mark.parametrize(
    ("files", "ranks", "expected"),
    [
        ([2, 2], 2, ["__0_0", "__1_0"]),
        ([8], 2, ["__0_0", "__0_4"]),
        ([2], 4, ["__0_0", None, "__0_1", None]),
        ([3, 3], 5, ["__0_0", "__0_1", "__0_2", "__1_0", "__1_1"]),
        ([4, 4, 4, 4], 2, ["__0_0", "__2_0"]),
        ([1, 0], 2, ["__0_0", None]),
        ([1] * 64, 1, ["__0_0"]),
    ],
)
def test_each_rank_begins_with_another_file(files: list[int], ranks: int, expected: list[str | None]) -> None:
    names = {shard_name(writer, number) for writer, several in enumerate(files) for number in range(several)}
    found = [front(names, len(files), rank, ranks) for rank in range(ranks)]
    assert found == [None if each is None else f"{each}.distcp" for each in expected]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """By which threads which bytes of shards are read: all that is fetched ahead before any is asked for."""
    found: list[tuple[str, int, int]] = []
    read, fill = PosixStore.read_into, SavedShards.read_into

    def told(store: PosixStore, key: str, start: int, into: memoryview) -> int:
        if key.endswith(".distcp"):
            found.append((threading.current_thread().name.rpartition("-")[0], start, start + len(into)))
        return read(store, key, start, into)

    def late(self: SavedShards, number: int, start: int, into: memoryview) -> int:
        if self._ahead is not None:
            ahead = self._ahead[1]
            while len(ahead._begun) < ahead._most:
                threading.Event().wait(0.01)
            for future in ahead._begun:
                future.result()
        return fill(self, number, start, into)

    monkeypatch.setattr(PosixStore, "read_into", told)
    monkeypatch.setattr(SavedShards, "read_into", late)
    return found


def test_a_restore_takes_what_was_fetched_and_asks_for_no_byte_twice(
    job: Callable[..., Job], tmp_path: Path, asked: list[tuple[str, int, int]]
) -> None:
    first, second = job(width=60_000), job(width=60_000, seed=1)
    first.run(tmp_path, 2)
    with second.checkpointer(tmp_path) as checkpointer:
        assert checkpointer.load_latest() is not None
    assert {name for name, _, _ in asked} == {"everstep-ahead"}
    pieces = sorted((start, end) for _, start, end in asked)
    assert pieces[0][0] == 0
    assert all(before[1] == after[0] for before, after in pairwise(pieces))
    for name, value in first.model.state_dict().items():
        assert value.equal(second.model.state_dict()[name])


@pytest.mark.parametrize(
    ("saved", "now", "expected"),
    [
        ((2, {"dp": 2}), (2, {"dp": 2}), True),
        ((1, {}), (1, {}), True),
        ((64, {"dp": 64}), (1, {"dp": 1}), True),
        ((2, {"dp": 2}), (2, {"shard": 2}), False),
        ((4, {"dp": 4}), (2, {"dp": 2}), False),
        ((4, {"dp": 2, "tp": 2}), (4, {"dp": 2, "tp": 2}), False),
        ((4, {"shard": 2}), (4, {"shard": 2}), False),
        ((2, {}), (2, {}), False),
    ],
)
def test_a_rank_begins_with_what_it_needs_alone(
    saved: tuple[int, dict[str, int]], now: tuple[int, dict[str, int]], expected: bool
) -> None:
    assert has_own_file(saved, now) is expected
