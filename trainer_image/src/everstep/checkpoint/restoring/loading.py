"""State from storage into tensors, on all ranks together: every byte that any of them needs is fetched once.

1. Each rank lists the ranges that it needs, DCP's planner saying which part of which stored piece goes where.
2. All lists are exchanged, with what each rank has ahead, and each computes who fetches what (`dividing`).
3. Each fetches and verifies its share, straight into the final memory where that is possible.
4. All learn whether all succeeded; only then is anything handed round, so that no rank waits for one that failed.
   What several ranks need comes in rounds: while one is handed round, the next is fetched.
"""

from __future__ import annotations

import io
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from everstep.catalog.manifest import BLOCK
from everstep.catalog.store.threads import DaemonPool
from everstep.checkpoint import collecting
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.restoring.dividing import PIECE, SMALL, Needs, Piece, blocks, divide
from everstep.checkpoint.restoring.matching import check_covered
from everstep.checkpoint.restoring.reader import SavedShards, tensor_in, unarchived
from everstep.checkpoint.restoring.sharing import hand_round
from everstep.checkpoint.restoring.targets import FileTargets, Rows, Target, Whole
from everstep.errors import CheckpointError, CheckpointUnreadableError

THREADS = max(4, min(8, os.cpu_count() or 1))
"""Pieces that one rank fetches at a time: its memory beside the tensors is so many times PIECE, and ROUND."""
STRAIGHT = 16 << 20
"""From so many bytes on, a request of its own saves more than it costs: they are not copied any more. A request costs a
millisecond of processor time, and copying 16 MiB three."""

COPIED = 8 << 20
"""Up to so many bytes, a request that is spared is worth a copy: to the server it is work as well."""
NOTHING = FileTargets(())
"""Of a file that a rank only reads for others."""


class Planner(DefaultLoadPlanner):
    """Loads what is not a tensor without running anybody's code."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], unarchived(value))


@dataclass(frozen=True)
class Wanted:
    """What this rank needs, and where it goes."""

    needs: Needs
    targets: dict[int, FileTargets]


def load_state(state: dict[str, Any], saved: SavedShards, gang: Gang, last: bool = True) -> int:
    """Collective. Fill the tensors of `state`, and set its other values. Returns the bytes that this rank fetched.
    `last`: nothing is loaded after this, so that what is fetched ahead ends here.

    Raises CheckpointCorruptError on all ranks where a block fails its checksum twice on one: tensors then hold
    anything.
    """
    wanted = gang.everywhere(lambda: want(state, saved))
    told = gang.all_gather((wanted.needs, saved.fetched_ahead() if last else None))
    division = divide([needs for needs, _ in told], gang.rank, holders=saved.holders, ahead=[has for _, has in told])
    own = [piece for run in division.own for piece in cut(run, wanted.targets)]
    todo = [
        [*(piece for piece in shared if piece.reader == gang.rank), *part]
        for shared, part in zip(division.rounds, dealt(own, len(division.rounds)), strict=True)
    ]
    fetched = 0
    failures: list[Exception] = []
    with Fetching(saved, wanted.targets) as fetching:
        under_way = [fetching.begin(pieces) for pieces in todo[:1]]
        for number, shared in enumerate(division.rounds):
            under_way += [fetching.begin(pieces) for pieces in todo[number + 1 : number + 2]]
            fetched += gang.everywhere(partial(fetching.finish, under_way[number]))
            for batch in batches(shared):
                if gang.rank in batch[0].members:
                    _share(batch, fetching, wanted.targets, gang, failures)
    gang.everywhere(lambda: check_complete(wanted, failures))
    return fetched


def load_alone(state: dict[str, Any], saved: SavedShards, on_bytes: Callable[[int], None] = lambda _: None) -> None:
    """As `load_state`, for one process that is no rank of anything. `on_bytes` hears of what was fetched, from several
    threads."""
    wanted = want(state, saved)
    pieces = [piece for run in divide([wanted.needs], 0).own for piece in cut(run, wanted.targets)]
    with Fetching(saved, wanted.targets, on_bytes) as fetching:
        fetching.finish(fetching.begin(pieces))
    check_complete(wanted)


@collecting.paused()
def want(state: dict[str, Any], saved: SavedShards) -> Wanted:
    planner = Planner()
    planner.set_up_planner(state, saved.metadata, False)
    placed: dict[Any, tuple[int, Target]] = {}
    items = planner.create_local_plan().items
    check_covered(planner.state_dict, items)
    for item in items:
        if item.type == LoadItemType.BYTE_IO or 0 not in item.lengths:  # an empty part of a tensor needs nothing
            place = saved.place(item.storage_index)
            target = _target(item, place, planner, saved)
            # Of names that share their memory (tied weights) the last one counts, as in `load_state_dict`.
            placed[target.home if isinstance(target, Rows) else target] = saved.numbers[place.relative_path], target
    targets: dict[int, list[Target]] = defaultdict(list)
    for number, target in placed.values():
        targets[number].append(target)
    needs = {
        number: blocks((each for target in found for each in target.ranges), saved.files[number].size)
        for number, found in targets.items()
    }
    return Wanted(needs, {number: FileTargets(found) for number, found in targets.items()})


def _target(item: ReadItem, place: Any, planner: Planner, saved: SavedShards) -> Target:
    start = saved.payload(item)
    if start is not None:
        into = planner.resolve_tensor(item).detach()
        return Rows(start, saved.stored_shape(item), item.storage_offsets, item.lengths, into)
    return Whole(place.offset, place.offset + place.length, partial(_open, item, planner))


def _open(item: ReadItem, planner: Planner, archive: torch.Tensor) -> None:
    """An archive whose inside is not known, or that is no tensor's."""
    body = archive.numpy().data
    if item.type == LoadItemType.BYTE_IO:
        planner.load_bytes(item, io.BytesIO(body))
        return
    tensor = narrow_tensor_by_index(tensor_in(body), item.storage_offsets, item.lengths)
    into = planner.resolve_tensor(item).detach()
    if into.size() != tensor.size():
        raise CheckpointUnreadableError(
            f"{item.storage_index.fqn}: {tuple(tensor.size())} is stored where {tuple(into.size())} was promised"
        )
    into.copy_(tensor)


def cut(run: Piece, targets: dict[int, FileTargets]) -> Iterator[Piece]:
    """What one rank alone needs, in pieces, of which as much as possible lies in the memory of one tensor."""
    at = run.start
    for target in targets[run.file].at(run.start, run.end):
        low = -(-max(target.ranges[0][0], at) // BLOCK) * BLOCK
        high = min(target.ranges[0][1] // BLOCK * BLOCK, run.end)
        if high - low >= STRAIGHT and target.memory(low, high) is not None:
            yield from _pieces(run, at, low)
            yield from _pieces(run, low, high)
            at = high
    yield from _pieces(run, at, run.end)


def _pieces(run: Piece, start: int, end: int) -> Iterator[Piece]:
    for at in range(start, end, PIECE):
        yield Piece(run.file, at, min(at + PIECE, end), run.reader, run.members)


def dealt(own: Sequence[Piece], rounds: int) -> list[Sequence[Piece]]:
    """A part for each round, all of about as many bytes: there is something to fetch while any round is handed on."""
    total = sum(piece.end - piece.start for piece in own)
    parts: list[list[Piece]] = [[] for _ in range(rounds)]
    before = 0
    for piece in own:
        parts[before * rounds // total].append(piece)
        before += piece.end - piece.start
    return [*parts]


def batches(shared: Sequence[Piece]) -> Iterator[list[Piece]]:
    """What is handed on at a time, in the same order on all ranks: a piece, or small ones that the same rank has for
    the same ranks."""
    together: dict[tuple[int, tuple[int, ...]], list[Piece]] = {}
    for piece in shared:
        size = piece.end - piece.start
        if len(piece.members) < 2:
            continue
        if size >= SMALL:
            yield [piece]
            continue
        batch = together.setdefault((piece.reader, piece.members), [])
        if sum(each.end - each.start for each in batch) + size > PIECE:
            yield batch
            batch = together[piece.reader, piece.members] = []
        batch.append(piece)
    yield from together.values()


def joined(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """What is fetched with one request: a piece, or small ones side by side, or a small one beside one that is not much
    to copy."""
    found: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda each: (each.file, each.start)):
        last = found[-1] if found else [piece]
        sizes = (last[-1].end - last[-1].start, piece.end - piece.start)
        total = piece.end - last[0].start
        beside = (last[-1].file, last[-1].end) == (piece.file, piece.start) and total <= PIECE
        if beside and (max(sizes) < SMALL or (min(sizes) < SMALL and total <= COPIED)):
            last.append(piece)
        else:
            found.append([piece])
    return found


class Fetching:
    """Fetches pieces by several threads, and holds those that others need until they were handed round. Once left,
    nothing is written into any tensor any more, unless the process is told to stop."""

    def __init__(
        self, saved: SavedShards, targets: dict[int, FileTargets], on_bytes: Callable[[int], None] = lambda _: None
    ) -> None:
        self._on_bytes = on_bytes
        self._saved = saved
        self._targets = targets
        self._held: dict[Piece, torch.Tensor] = {}
        self._thread = threading.local()
        self._failed = threading.Event()
        self._pool = DaemonPool(THREADS, "everstep-restore")
        self._begun: list[Future[int]] = []

    def __enter__(self) -> Fetching:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._failed.set()  # of nothing, unless something failed: else all is fetched by now
        if kind is None or issubclass(kind, Exception):  # who is told to stop does not wait for storage
            wait(self._begun)
        self._pool.close()
        self._held.clear()

    def begin(self, pieces: Sequence[Piece]) -> list[Future[int]]:
        """What was begun before comes first."""
        begun = [self._pool.submit(self._fetch, each) for each in joined(pieces)]
        self._begun += begun
        return begun

    def finish(self, begun: Sequence[Future[int]]) -> int:
        """Returns the bytes fetched; raises the first error, when all that was begun before has ended."""
        wait(begun, return_when=FIRST_EXCEPTION)
        failures = [future for future in begun if future.done() and future.exception() is not None]
        if failures:
            self._failed.set()  # those that have not begun do nothing
            wait(begun)
        return sum(future.result() for future in [*failures, *begun])

    def held(self, piece: Piece) -> torch.Tensor:
        """What was fetched of a piece that others need too."""
        return self._held.pop(piece)

    def _fetch(self, pieces: Sequence[Piece]) -> int:
        if self._failed.is_set():
            return 0
        return self._fetch_one(pieces[0]) if len(pieces) == 1 else self._fetch_together(pieces)

    def _fetch_together(self, pieces: Sequence[Piece]) -> int:
        file, first = pieces[0].file, pieces[0].start
        data = torch.empty(pieces[-1].end - first, dtype=torch.uint8, device="cpu")
        fetched = self._saved.read_into(file, first, data.numpy().data)
        self._on_bytes(fetched)
        self._targets.get(file, NOTHING).take(first, data)
        for piece in pieces:
            if len(piece.members) > 1:
                self._held[piece] = data[piece.start - first : piece.end - first].clone()  # a view would keep it all
        return fetched

    def _fetch_one(self, piece: Piece) -> int:
        targets = self._targets.get(piece.file, NOTHING)
        found = targets.memory(piece.start, piece.end)
        data = found[0] if found else self._scratch(piece)
        fetched = self._saved.read_into(piece.file, piece.start, data.numpy().data)
        self._on_bytes(fetched)
        targets.take(piece.start, data, found[1] if found else None)
        if len(piece.members) > 1:
            self._held[piece] = data
        return fetched

    def _scratch(self, piece: Piece) -> torch.Tensor:
        size = piece.end - piece.start
        if len(piece.members) > 1:
            return torch.empty(size, dtype=torch.uint8, device="cpu")
        if not hasattr(self._thread, "scratch"):
            self._thread.scratch = torch.empty(PIECE, dtype=torch.uint8, device="cpu")
        scratch: torch.Tensor = self._thread.scratch
        return scratch[:size]


def _share(
    batch: Sequence[Piece], fetching: Fetching, wanted: dict[int, FileTargets], gang: Gang, failures: list[Exception]
) -> None:
    """A piece that cannot be taken is still handed on: who waits for it must not wait for ever."""
    first, *more = batch
    if first.reader == gang.rank:
        held = [fetching.held(piece) for piece in batch]
        hand_round(torch.cat(held) if more else held[0], first.members, first.reader, gang.rank, gang.group)
        return
    found = None if more else wanted.get(first.file, NOTHING).memory(first.start, first.end)
    data = (
        found[0]
        if found
        else torch.empty(sum(each.end - each.start for each in batch), dtype=torch.uint8, device="cpu")
    )
    hand_round(data, first.members, first.reader, gang.rank, gang.group)
    at = 0
    for piece in batch:
        part = data[at : at + piece.end - piece.start]
        at += len(part)
        try:
            wanted.get(piece.file, NOTHING).take(piece.start, part, found[1] if found else None)
        except Exception as error:  # noqa: BLE001 - all ranks hear of it when all is handed round
            failures.append(error)


def check_complete(wanted: Wanted, failures: Sequence[Exception] = ()) -> None:
    """That nothing was left out: a gap in the division would leave a tensor as it was."""
    if failures:
        raise failures[0]
    short = [target for files in wanted.targets.values() for target in files.targets if target.left]
    if short:
        raise CheckpointError(f"{len(short)} parts of tensors were not filled, {short[0].left} bytes of the first")
