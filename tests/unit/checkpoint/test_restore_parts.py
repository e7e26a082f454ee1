"""What a restore is computed from: which bytes a part of a tensor is, who fetches them, and where they go."""

from __future__ import annotations

import gc
import itertools
import math
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everstep.catalog.manifest import BLOCK
from everstep.catalog.store.posix import PosixStore
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.restoring import loading
from everstep.checkpoint.restoring.dividing import PIECE, Division, Needs, Piece, blocks, divide
from everstep.checkpoint.restoring.loading import (
    Fetching,
    Wanted,
    _share,
    batches,
    check_complete,
    dealt,
    joined,
)
from everstep.checkpoint.restoring.matching import check_covered
from everstep.checkpoint.restoring.reader import SavedShards
from everstep.checkpoint.restoring.targets import FileTargets, Range, Rows, Whole
from everstep.errors import CheckpointCorruptError, StorageRefusedError

from .conftest import Job


@st.composite
def parts(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Shape of a tensor, and offsets and lengths of a part of it."""
    shape = draw(st.lists(st.integers(1, 5), max_size=4))
    offsets = [draw(st.integers(0, size - 1)) for size in shape]
    return shape, offsets, [draw(st.integers(1, size - at)) for size, at in zip(shape, offsets, strict=True)]


@settings(deadline=None, max_examples=300)
@given(
    part=parts(),
    base=st.integers(0, 50),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64]),
    strided=st.booleans(),
    cuts=st.lists(st.integers(1, 700), max_size=5),
    data=st.data(),
)
def test_a_part_of_a_tensor_comes_from_pieces_cut_anywhere(
    part: tuple[list[int], list[int], list[int]],
    base: int,
    dtype: torch.dtype,
    strided: bool,
    cuts: list[int],
    data: st.DataObject,
) -> None:
    shape, offsets, lengths = part
    stored = torch.randint(0, 2 if dtype is torch.bool else 100, shape).to(dtype)
    body = torch.cat([torch.zeros(base, dtype=torch.uint8), stored.reshape(-1).view(torch.uint8)])
    into = torch.zeros([*lengths, 2], dtype=dtype)[..., 0] if strided else torch.zeros(lengths, dtype=dtype)
    rows = Rows(base, shape, offsets, lengths, into)
    wanted = stored[tuple(slice(at, at + size) for at, size in zip(offsets, lengths, strict=True))]
    ends = [0, *sorted({cut for cut in cuts if cut < len(body)}), len(body)]
    for start, end in data.draw(st.permutations(list(pairwise(ends)))):
        straight = rows.memory(start, end)
        if straight is None:
            rows.take(start, body[start:end])
        else:
            straight.copy_(body[start:end])
            rows.count(end - start)
    assert rows.left == 0
    assert torch.equal(into, wanted)


def test_distant_rows_are_ranges_of_their_own() -> None:
    """The first columns of a matrix whose rows are long."""
    rows = Rows(100, (4, BLOCK), (1, 0), (2, 10), torch.zeros(2, 10))
    assert rows.ranges == [(100 + 4 * BLOCK, 100 + 4 * BLOCK + 40), (100 + 8 * BLOCK, 100 + 8 * BLOCK + 40)]
    near = Rows(0, (4, 1000), (1, 0), (2, 10), torch.zeros(2, 10))
    assert near.ranges == [(4000, 8040)]


def test_what_is_wanted_whole_is_handed_over_once() -> None:
    body = torch.arange(100, dtype=torch.uint8)
    seen: list[torch.Tensor] = []
    whole = Whole(10, 90, seen.append)
    files = FileTargets([whole, Rows(20, (10,), (0,), (10,), torch.zeros(10, dtype=torch.uint8))])
    assert len(files.at(15, 25)) == 2
    assert files.at(90, 100) == []
    files.take(50, body[50:])
    assert not seen
    files.take(0, body[:50])
    assert torch.equal(seen[0], body[10:90])
    assert [target.left for target in files.targets] == [0, 0]


def test_who_cannot_take_a_piece_waits_with_its_error_until_all_is_handed_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: torch.Tensor) -> None:
        raise CheckpointCorruptError("no tensor")

    monkeypatch.setattr("everstep.checkpoint.restoring.loading.hand_round", lambda data, *_: data.zero_())
    targets = {0: FileTargets([Whole(0, 10, refuse)])}
    failures: list[Exception] = []
    _share([Piece(0, 0, 10, 1, (0, 1))], cast(Fetching, None), targets, Gang(), failures)
    with pytest.raises(CheckpointCorruptError, match="no tensor"):
        check_complete(Wanted({}, targets), failures)


def test_whole_blocks_are_needed() -> None:
    size = 3 * BLOCK + 10
    assert blocks([(5, 15)], size) == [(0, BLOCK)]
    assert blocks([(BLOCK - 1, BLOCK + 1), (3 * BLOCK, size)], size) == [(0, 2 * BLOCK), (3 * BLOCK, size)]
    assert blocks([(2 * BLOCK, 2 * BLOCK + 1), (0, 2 * BLOCK)], size) == [(0, 3 * BLOCK)]


def runs(members: list[list[bool]], file: int) -> list[Range]:
    flags = members[file]
    return blocks([(at * BLOCK, at * BLOCK + 1) for at, wanted in enumerate(flags) if wanted], len(flags) * BLOCK)


@settings(deadline=None)
@given(
    wanted=st.integers(1, 5).flatmap(
        lambda ranks: st.lists(
            st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=2, max_size=2),
            min_size=ranks,
            max_size=ranks,
        )
    ),
    most=st.integers(1, 6),
)
def test_every_block_is_fetched_once_and_reaches_all_who_need_it(wanted: list[list[list[bool]]], most: int) -> None:
    needs: list[Needs] = [{file: runs(of_rank, file) for file in range(2)} for of_rank in wanted]
    divisions = [divide(needs, rank, 2 * BLOCK, most * BLOCK) for rank in range(len(needs))]
    assert all(division.rounds == divisions[0].rounds for division in divisions)
    fetched: dict[tuple[int, int], Piece] = {}
    for rank, division in enumerate(divisions):
        mine = [piece for pieces in division.rounds for piece in pieces if piece.reader == rank]
        for piece in [*division.own, *mine]:
            for at in range(piece.start, piece.end, BLOCK):
                assert fetched.setdefault((piece.file, at), piece) is piece
    for file in range(2):
        for block in range(12):
            members = tuple(rank for rank, of_rank in enumerate(wanted) if of_rank[file][block])
            found = fetched.get((file, block * BLOCK))
            assert (found is None) == (not members)
            if found is not None:  # who reads it for others need not need it
                assert {*found.members} == {*members, found.reader}
    for pieces in divisions[0].rounds:
        for rank in range(len(needs)):
            held = [piece.end - piece.start for piece in pieces if piece.reader == rank]
            assert sum(held) <= max(most, 2) * BLOCK


def test_slices_of_small_tensors_are_fetched_many_at_a_time() -> None:
    """Saved by one rank, loaded by two: each needs half of each tensor, and no byte that no rank needs is fetched."""
    halves = [(at * BLOCK, (at + 1) * BLOCK) for at in range(400) if at % 5 != 4]
    gap = (4 * BLOCK, 5 * BLOCK)
    needs: list[Needs] = [{0: halves[0::2], 1: [(0, 64 * BLOCK)]}, {0: halves[1::2], 1: [(64 * BLOCK, 128 * BLOCK)]}]
    divisions = [divide(needs, rank) for rank in range(2)]
    mine = [
        joined([piece for piece in division.rounds[0] if piece.reader == rank])
        for rank, division in enumerate(divisions)
    ]
    requests = [*mine[0], *mine[1]]
    assert len(requests) == 80, "four blocks side by side, then one that nobody needs"
    assert all(gap[0] not in range(pieces[0].start, pieces[-1].end) for pieces in requests)
    assert sum(piece.end - piece.start for pieces in requests for piece in pieces) == 320 * BLOCK
    assert [division.own for division in divisions] == [
        [Piece(1, 0, 64 * BLOCK, 0, (0,))],
        [Piece(1, 64 * BLOCK, 128 * BLOCK, 1, (1,))],
    ], "what is large is its own rank's"
    shares = [sum(pieces[-1].end - pieces[0].start for pieces in each) for each in mine]
    assert shares == [160 * BLOCK, 160 * BLOCK]


def test_a_block_at_which_two_shards_meet_costs_no_request_and_no_broadcast_of_its_own() -> None:
    """Of each of ten tensors, 33 blocks and a half long, two ranks need a half, and both the block in the middle."""
    size = 33 * BLOCK + BLOCK // 2
    middle = [at * size + size // 2 for at in range(10)]
    halves = ([(m - size // 2, m) for m in middle], [(m, m + size // 2) for m in middle])
    needs: list[Needs] = [{0: blocks(each, 10 * size)} for each in halves]
    divisions = [divide(needs, rank) for rank in range(2)]
    (shared,) = divisions[0].rounds
    assert len(shared) > 10
    assert len(list(batches(shared))) == 2, "one a rank that reads"
    for rank, division in enumerate(divisions):
        mine = [piece for piece in shared if piece.reader == rank]
        assert len(joined([*mine, *division.own])) == 10


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 2), st.sampled_from([(0,), (0, 1), (0, 1, 2)]))))
def test_all_that_is_shared_is_handed_on_once(sizes: list[tuple[int, int, tuple[int, ...]]]) -> None:
    shared = [
        Piece(0, number * PIECE, number * PIECE + blocks * BLOCK, reader, tuple(sorted({*members, reader})))
        for number, (blocks, reader, members) in enumerate(sizes)
    ]
    found = list(batches(shared))
    assert sorted(piece.start for batch in found for piece in batch) == [
        piece.start for piece in shared if len(piece.members) > 1
    ]
    for batch in found:
        assert len({(piece.reader, piece.members) for piece in batch}) == 1
        assert len(batch) == 1 or sum(piece.end - piece.start for piece in batch) <= PIECE


def test_what_all_need_is_shared_out_evenly() -> None:
    division = divide([{0: [(0, 64 * BLOCK)]}] * 4, 0, 2 * BLOCK)
    shares = [sum(p.end - p.start for p in division.rounds[0] if p.reader == rank) for rank in range(4)]
    assert shares == [16 * BLOCK] * 4
    assert division.own == []


@pytest.mark.parametrize("shape", [(), (0, 3), (1,)])
def test_scalars_and_nothing(shape: tuple[int, ...]) -> None:
    into = torch.zeros(shape)
    if math.prod(shape):
        rows = Rows(7, shape, [0] * len(shape), shape, into)
        memory = rows.memory(7, 11)
        assert memory is not None
        memory.copy_(torch.tensor([2.5]).view(torch.uint8))
        assert into.sum() == 2.5


def test_what_is_read_before_the_first_tensor_is_asked_for_at_once(
    job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest beside `.metadata`, and what all ranks share beside what one has of its own."""
    job().run(tmp_path, 2)
    get, read_into = PosixStore.get, PosixStore.read_into
    described, values = threading.Barrier(2), threading.Barrier(2)
    reads = itertools.count()

    def slow_get(self: PosixStore, key: str, *more: Any) -> bytes:
        if key.endswith("/manifest.json"):
            described.wait(10)
        return get(self, key, *more)

    def slow_read(self: PosixStore, key: str, start: int, into: memoryview) -> int:
        if key.endswith("/.metadata"):
            described.wait(10)
        elif next(reads) < 2:
            values.wait(10)
        return read_into(self, key, start, into)

    monkeypatch.setattr(PosixStore, "get", slow_get)
    monkeypatch.setattr(PosixStore, "read_into", slow_read)
    monkeypatch.setattr(SavedShards, "begin_ahead", lambda *_: None)  # as with another number of ranks
    with job().checkpointer(tmp_path) as checkpointer:
        loaded = checkpointer.load_latest()
    assert loaded is not None
    assert loaded.step == 2


def test_connections_are_opened_while_the_job_is_claimed(
    job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails in that fails again where it is needed, or does not."""
    job().run(tmp_path, 2)
    connected = threading.Event()
    read_register = PosixStore.read_register

    def connect(_: PosixStore, count: int) -> None:
        assert count == loading.THREADS
        connected.set()
        raise StorageRefusedError("not yet")

    def slow(self: PosixStore, *more: Any) -> Any:
        assert connected.wait(10)
        return read_register(self, *more)

    monkeypatch.setattr(PosixStore, "connect", connect, raising=False)
    monkeypatch.setattr(PosixStore, "read_register", slow)
    with job().checkpointer(tmp_path) as checkpointer:
        loaded = checkpointer.load_latest()
    assert loaded is not None


@pytest.mark.parametrize("usual", [True, False])
def test_nothing_is_collected_while_a_restore_is_planned(
    job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usual: bool
) -> None:
    job().run(tmp_path, 2)
    collects: list[bool] = []

    def check(*arguments: Any) -> None:
        collects.append(gc.isenabled())
        check_covered(*arguments)

    monkeypatch.setattr(loading, "check_covered", check)
    try:
        if not usual:
            gc.disable()
        with job().checkpointer(tmp_path) as checkpointer:
            checkpointer.load_latest()
        assert gc.isenabled() is usual
    finally:
        gc.enable()
    assert collects == [False]


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 5))
def test_what_is_a_ranks_own_is_dealt_out_over_all_rounds(sizes: list[int], rounds: int) -> None:
    own = [Piece(0, at * PIECE, at * PIECE + blocks, 0, (0,)) for at, blocks in enumerate(sizes)]
    parts = dealt(own, rounds)
    assert len(parts) == rounds
    assert [piece for part in parts for piece in part] == own
    for part in parts:
        assert sum(piece.end - piece.start for piece in part) <= sum(sizes) / rounds + max([0, *sizes])


def in_rounds(monkeypatch: pytest.MonkeyPatch, share: Callable[[Piece], None]) -> None:
    """Each block is a round of its own, which one rank has for another; `share` is what handing it round does."""

    def divided(needs: Any, rank: int, **more: Any) -> Division:
        found = [
            (run.file, at, run.end)
            for run in divide(needs, rank, **more).own
            for at in range(run.start, run.end, BLOCK)
        ]
        return Division([], [[Piece(file, at, min(at + BLOCK, end), 0, (0, 1))] for file, at, end in found])

    def handed(batch: list[Piece], fetching: Fetching, *_: Any) -> None:
        assert [len(fetching.held(piece)) for piece in batch] == [piece.end - piece.start for piece in batch]
        share(batch[0])

    monkeypatch.setattr(loading, "divide", divided)
    monkeypatch.setattr(loading, "_share", handed)


def of_the_rounds() -> bool:
    """Not what each rank reads first, for itself."""
    return threading.current_thread().name.startswith("everstep-restore")


def test_while_one_round_is_handed_on_the_next_is_fetched(
    job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = job(width=60_000)
    first.run(tmp_path, 2)
    begun = [threading.Event() for _ in range(30)]
    fetched: list[int] = []
    handed: list[Piece] = []
    plainly = SavedShards.read_into

    def read_into(self: SavedShards, number: int, start: int, into: memoryview) -> int:
        if of_the_rounds():
            fetched.append(start)
            begun[len(fetched) - 1].set()
        return plainly(self, number, start, into)

    def share(piece: Piece) -> None:
        handed.append(piece)
        if piece.start // BLOCK < 16:
            assert begun[len(handed)].wait(10), "the next round is not under way"
        assert len(fetched) <= len(handed) + 1, "no more than two rounds are held at a time"

    monkeypatch.setattr(SavedShards, "read_into", read_into)
    in_rounds(monkeypatch, share)
    second = job(width=60_000, seed=1)
    with second.checkpointer(tmp_path) as checkpointer:
        loaded = checkpointer.load_latest()
    assert loaded is not None
    assert len(handed) > 16
    for ours, theirs in zip(second.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_round_that_fails_ends_the_one_that_is_fetched_beside_it(
    job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the error is raised, nobody writes into tensors any more."""
    job(width=60_000).run(tmp_path, 2)
    beside, failed = threading.Event(), threading.Event()
    ended: list[int] = []
    plainly = SavedShards.read_into

    def read_into(self: SavedShards, number: int, start: int, into: memoryview) -> int:
        if start == 3 * BLOCK:
            assert beside.wait(10)
            failed.set()
            raise StorageRefusedError("not for you")
        if start == 4 * BLOCK:
            beside.set()
            failed.wait(10)
            time.sleep(0.2)
        found = plainly(self, number, start, into)
        if of_the_rounds():
            ended.append(start)
        return found

    monkeypatch.setattr(SavedShards, "read_into", read_into)
    in_rounds(monkeypatch, lambda _: None)
    with pytest.raises(StorageRefusedError, match="not for you"):
        job(width=60_000, seed=1).checkpointer(tmp_path).load_latest()
    assert sorted(ended) == [0, BLOCK, 2 * BLOCK, 4 * BLOCK]
