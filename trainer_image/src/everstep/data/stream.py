"""Batches from shards that are read from front to back: files, objects, anything without random access or a length.

The shards of an epoch are shuffled, `interleave` of them are open at once and give one record in turn, and windows of
`window` records are shuffled again. Which record stands at which position is thus fixed before anybody knows how many
there are. Every rank (and worker) reads all records but decodes only its own: raw reading is cheap beside decoding,
and in exchange the position is one for all, on any number of ranks. A cursor names the open shards and how far each is
read, as of the beginning of the window under way: a resume reads at most one window again.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from torch.utils.data import default_collate

from everstep.data.batches import Collate
from everstep.data.draws import draws_kept, seed_draws
from everstep.data.loader import Loader, OnChange, Workers
from everstep.data.order import shuffled
from everstep.data.share import Share
from everstep.errors import InvalidOperationError

_SHARDS, _WINDOW, _COLLATE = -1, -2, -3
"""Kinds of keys, beside the places of samples."""


class Source(Protocol):
    """Shards of records. `at` is 0 for a shard's beginning, and else a number that `read` gave: a record's number, a
    byte offset, whatever finds the place again without reading all that came before it."""

    @property
    def shards(self) -> Sequence[str]:
        """Names, in a fixed order."""

    def read(self, shard: str, at: int) -> Iterator[tuple[Any, int]]:
        """Records from `at` to the end, each with where the next one begins. Not decoded yet, where that costs."""


class StreamBatches(Loader["StreamCursor"]):
    """This rank's share of each global batch of a sharded stream, without end; epoch after epoch, each record once.

    `decode` makes a sample of a record, on the rank and worker that need it; what it draws is seeded as `Batches` does.
    `window=1` leaves records in the order of the shards, `shuffle=False` the shards too. `fingerprint` tells this data
    from another (default: the source's `fingerprint()`); without one only the names of the shards do.
    Raises InvalidOperationError for a source without shards, or an epoch without a record.
    """

    def __init__(
        self,
        source: Source,
        global_batch: int,
        *,
        decode: Callable[[Any], Any] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        interleave: int = 4,
        window: int = 1024,
        collate: Collate = default_collate,
        workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        start_method: str | None = None,
        fingerprint: str | None = None,
        on_change: OnChange = "error",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        shards = tuple(source.shards)
        if not shards:
            raise InvalidOperationError("source: it has no shards")
        if interleave < 1 or window < 1:
            raise InvalidOperationError(f"interleave={interleave}, window={window}: neither may be less than 1")
        own = getattr(source, "fingerprint", None)
        plan = _StreamPlan(
            source,
            shards,
            Share.here(global_batch, rank, world_size),
            decode,
            seed,
            shuffle,
            min(interleave, len(shards)),
            window if shuffle else 1,
            collate,
            fingerprint or (own() if callable(own) else hashlib.sha256("\n".join(shards).encode()).hexdigest()[:32]),
        )
        super().__init__(plan, Workers(workers, prefetch, pin_memory, start_method), on_change)


@dataclass(frozen=True, slots=True)
class StreamCursor:
    """The window under way begins with these `slots` ([shard in the epoch's order, place in it]) and `turn`; `opened`
    shards of the epoch's order were begun before it, `read` records given, and `taken` of its records are consumed."""

    position: int = 0
    epoch: int = 0
    opened: int = 0
    turn: int = 0
    slots: tuple[tuple[int, int], ...] = ()
    read: int = 0
    taken: int = 0


@dataclass(frozen=True)
class _StreamPlan:
    source: Source
    shards: tuple[str, ...]
    share: Share
    decode: Callable[[Any], Any] | None
    seed: int
    shuffle: bool
    interleave: int
    window: int
    collate: Collate
    fingerprint: str | None

    @property
    def order(self) -> Mapping[str, Any]:
        return {
            "kind": "stream",
            "shards": len(self.shards),
            "seed": self.seed,
            "shuffle": self.shuffle,
            "interleave": self.interleave,
            "window": self.window,
            "fingerprint": self.fingerprint,
        }

    def start(self) -> StreamCursor:
        return StreamCursor()

    def cursor(self, fields: Mapping[str, Any]) -> StreamCursor:
        slots = tuple((int(shard), int(at)) for shard, at in fields["slots"])
        return StreamCursor(**{**fields, "slots": slots})

    def next_epoch(self, position: int, epoch: int) -> StreamCursor:
        return StreamCursor(position, epoch + 1)

    def batches(self, cursor: StreamCursor, worker: int, workers: int) -> Iterator[tuple[Any, StreamCursor]]:
        walk = _Walk(self, cursor)
        mine = range(self.share.first, self.share.first + self.share.size)
        for number in itertools.count():
            found = [next(walk) for _ in range(self.share.global_batch)]
            if number % workers == worker:
                yield self._batch([found[index] for index in mine]), walk.cursor

    def _batch(self, records: list[_Record]) -> Any:
        with draws_kept():
            samples = []
            for record in records:
                seed_draws(self.seed, record.epoch, record.place)
                samples.append(record.value if self.decode is None else self._decoded(record))
            seed_draws(self.seed, records[0].epoch, records[0].place, _COLLATE)
            return self.collate(samples)

    def _decoded(self, record: _Record) -> Any:
        assert self.decode is not None
        try:
            return self.decode(record.value)
        except Exception as error:
            error.add_note(f"in shard {record.shard}: the record before {record.end}")
            raise


@dataclass(frozen=True, slots=True)
class _Record:
    value: Any
    shard: str
    end: int
    epoch: int
    place: int


class _Walk:
    """All records in their order from a cursor on, for ever."""

    def __init__(self, plan: _StreamPlan, cursor: StreamCursor) -> None:
        self._plan = plan
        self._begin = cursor
        self._reader = _Epoch(plan, cursor)
        self._window: list[_Record] = []
        self._fill()
        if cursor.taken > len(self._window):
            raise InvalidOperationError(
                "source: fewer records than there were: the checkpoint's position lies behind them"
            )
        self._taken = cursor.taken
        self._position = cursor.position

    @property
    def cursor(self) -> StreamCursor:
        """After the record that was given last."""
        if self._taken == len(self._window):
            return replace(self._reader.cursor, position=self._position)
        return replace(self._begin, position=self._position, taken=self._taken)

    def __next__(self) -> _Record:
        while self._taken == len(self._window):
            self._begin = self._reader.cursor
            self._fill()
            self._taken = 0
            if not self._window:
                self._end_epoch()
        record = self._window[self._taken]
        self._taken += 1
        self._position += 1
        return record

    def _fill(self) -> None:
        begin = self._begin
        found = list(itertools.islice(self._reader, self._plan.window))
        if len(found) > 1:
            key = (self._plan.seed, begin.epoch, begin.read, _WINDOW)
            found = [found[i] for i in shuffled(np.arange(len(found)), len(found), key).tolist()]
        self._window = found

    def _end_epoch(self) -> None:
        if self._begin.read == 0:
            raise InvalidOperationError(f"source: no record in any of {len(self._plan.shards)} shards")
        self._begin = StreamCursor(epoch=self._begin.epoch + 1)
        self._reader = _Epoch(self._plan, self._begin)


class _Epoch:
    """The records of one epoch, from the beginning of some window on: one of each open shard in turn."""

    def __init__(self, plan: _StreamPlan, begin: StreamCursor) -> None:
        self._plan = plan
        self._epoch = begin.epoch
        count = len(plan.shards)
        key = (plan.seed, begin.epoch, _SHARDS)
        self._order = shuffled(np.arange(count), count, key).tolist() if plan.shuffle else list(range(count))
        self._opened = begin.opened
        self._turn = begin.turn
        self._read = begin.read
        self._slots = [(shard, at, self._open(shard, at)) for shard, at in begin.slots]

    @property
    def cursor(self) -> StreamCursor:
        slots = tuple((shard, at) for shard, at, _ in self._slots)
        return StreamCursor(0, self._epoch, self._opened, self._turn, slots, self._read)

    def __iter__(self) -> Iterator[_Record]:
        return self

    def __next__(self) -> _Record:
        while True:
            while len(self._slots) < self._plan.interleave and self._opened < len(self._order):
                self._slots.append((self._opened, 0, self._open(self._opened, 0)))
                self._opened += 1
            if not self._slots:
                raise StopIteration
            self._turn %= len(self._slots)
            shard, _, records = self._slots[self._turn]
            try:
                value, end = next(records)
            except StopIteration:
                self._replace(self._turn)
                continue
            self._slots[self._turn] = (shard, end, records)
            self._turn += 1
            self._read += 1
            return _Record(value, self._name(shard), end, self._epoch, self._read - 1)

    def _replace(self, slot: int) -> None:
        """A shard that ended makes room for the next one, in its place."""
        if self._opened < len(self._order):
            self._slots[slot] = (self._opened, 0, self._open(self._opened, 0))
            self._opened += 1
        else:
            del self._slots[slot]

    def _name(self, shard: int) -> str:
        return self._plan.shards[self._order[shard]]

    def _open(self, shard: int, at: int) -> Iterator[tuple[Any, int]]:
        return iter(self._plan.source.read(self._name(shard), at))
