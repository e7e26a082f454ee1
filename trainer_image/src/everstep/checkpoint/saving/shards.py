"""One rank's part of each save, from live tensors to stored shards; the commit is the caller's.

`prepare` runs at the step boundary, in training's thread; `finish` copies the rest and begins to store the files, in
that thread or another.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar, cast

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from everstep.catalog import File, Location, Store
from everstep.catalog.keys import METADATA
from everstep.catalog.store.threads import at_once
from everstep.checkpoint import metadata as metadata_format
from everstep.checkpoint.blocks import describe_file
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.saving.layout import FileLayout, arrange, piece
from everstep.checkpoint.saving.planning import Outline, Plan, Plans, outline
from everstep.checkpoint.saving.staging import Buffers, Source, Sources, StagedFile, Staging
from everstep.checkpoint.saving.uploading import Storing, Upload
from everstep.checkpoint.state.application import Application, Seen, check_alike, compose, differing, look
from everstep.weights.assets import ASSETS

T = TypeVar("T")

_PLAIN = (torch.Tensor, torch.nn.Parameter)
"""All of which is one rank's: the planner would hand them out as they are."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a rank stores. `places`: where its items lie in its files."""

    files: tuple[File, ...]
    places: Mapping[MetadataIndex, Any]


@dataclass(frozen=True, slots=True)
class Times:
    """What one rank's part has cost, in seconds. `retries`: requests that were sent again."""

    staged: float
    uploaded: float
    retries: int


class Sending:
    """Files that are staged, and on their way."""

    def __init__(self, report: Report, began: float, staged: float, storing: Storing) -> None:
        """`began`, `staged`: when the copy was, on the monotonic clock."""
        self.report = report
        self._began = began
        self._staged = staged
        self._storing = storing

    def wait(self) -> Times:
        """As often as you like, and once whatever else may fail: the buffers are free then. Raises StorageError."""
        stored = self._storing()
        return Times(self._staged - self._began, stored.at - self._staged, stored.retries)


@dataclass(frozen=True, slots=True)
class _Told(Generic[T]):
    """What a rank says at a boundary. `ready`: that it has found nothing new."""

    told: T
    digests: Mapping[str, bytes]
    ready: bool


@dataclass
class Prepared:
    """A save whose boundary is over."""

    plan: Plan
    staging: Staging
    began: float
    staged: Callable[[], None] = lambda: None
    """Called once nothing live is read any more, whether that worked or not."""


class Shards:
    """What is kept from one save to the next: the plan, the layout, the buffers and the way to storage."""

    def __init__(
        self,
        app: Application,
        gang: Gang,
        upload: Upload,
        plans: Plans | None = None,
        buffers: Buffers | None = None,
    ) -> None:
        self.plans = plans or Plans()
        self.buffers = buffers or Buffers()
        self._app = app
        self._gang = gang
        self._upload = upload
        self._layouts: tuple[FileLayout, ...] = ()
        self._laid_out: Plan | None = None
        self._rooms: dict[int, int] = {}
        self._archives = _Archives()

    def prepare(
        self,
        counters: Mapping[str, int],
        late: Callable[[torch.Tensor], bool],
        tell: Callable[[], T],
    ) -> tuple[Prepared, list[T]]:
        """Collective. `late` tells which tensors do not change before `finish` is through; all others are copied now.
        Returned is also, by rank, what each of them has to `tell`. The last save must be over.

        Each rank takes it that all is as it was in the last save, and that so it is for the others. One exchange shows
        whether that is true, and only where it is not the ranks look closer.
        """
        began = time.monotonic()
        (seen, staging), told = self._gang.compare(lambda: self._attempt(counters, late, tell))
        apart = differing([each.digests for each in told])
        check_alike(apart)
        known = self.plans.known
        if known is not None and staging is not None and apart == known.apart and all(each.ready for each in told):
            return Prepared(known.plan, staging, began), [each.told for each in told]
        found, plan = self._plan(counters, seen, apart)
        staging = self._gang.everywhere(lambda: self._take(found, plan, late))
        return Prepared(plan, staging, began), [each.told for each in told]

    def _attempt(
        self, counters: Mapping[str, int], late: Callable[[torch.Tensor], bool], tell: Callable[[], T]
    ) -> tuple[tuple[Seen, Staging | None], _Told[T]]:
        """Not collective. What is there now, and staged where a plan made for the last save is good for it."""
        word = tell()
        seen = look(self._app, self._gang)
        known = self.plans.known
        staging = None
        if known is not None:
            found = outline(compose(self._app, self._gang, counters, seen, known.apart), self._gang.rank)
            if known.fits(found):
                staging = self._take(found, known.plan, late)
        return (seen, staging), _Told(word, seen.digests, staging is not None)

    def _plan(self, counters: Mapping[str, int], seen: Seen, apart: frozenset[str]) -> tuple[Outline, Plan]:
        """Collective. A new plan, unless the last one is good for what was seen."""

        def look_closer() -> tuple[Outline, bool]:
            found = outline(compose(self._app, self._gang, counters, seen, apart), self._gang.rank)
            return found, self.plans.known is not None and self.plans.known.fits(found)

        found, fits = self._gang.compare(look_closer)
        return found, self.plans.plan(found, apart, self._gang, all(fits))

    def _take(self, found: Outline, plan: Plan, late: Callable[[torch.Tensor], bool]) -> Staging:
        sources = [self._source(item, found.planner) for item in plan.items]
        layouts = self._layout(plan, sources)
        state = found.planner.state_dict
        shards = (each for each in enumerate(plan.items) if each[1].type == WriteItemType.SHARD)
        owners = {number: state[item.index.fqn] for number, item in shards}
        staging = Staging(layouts, self.buffers.fit(layouts), sources, late, owners)
        staging.take()
        return staging

    def _source(self, item: WriteItem, planner: DefaultSavePlanner) -> Source:
        value: Any = planner.state_dict[item.index.fqn]
        if item.tensor_data is None:
            return self._archives.of(item.index.fqn, value)
        if isinstance(value, DTensor):  # the planner finds the same, by a detour for each of thousands
            local = value._local_tensor
            found = local if local.size() == item.tensor_data.chunk.sizes else planner.resolve_data(item)
        else:
            found = value if type(value) in _PLAIN else planner.resolve_data(item)
        return cast(torch.Tensor, found.detach())  # who gives a parameter other data does not give it to this save

    def _layout(self, plan: Plan, sources: Sources) -> tuple[FileLayout, ...]:
        """The last one, unless the plan is new or a value has outgrown its place."""
        fits = (_archive_bytes(sources[number]) <= room for number, room in self._rooms.items())
        if self._laid_out is not plan or not all(fits):
            pieces = [piece(item, _archive_bytes(source)) for item, source in zip(plan.items, sources, strict=True)]
            self._layouts = arrange(pieces, self._gang.rank)
            self._rooms = {number: found.room for number, found in enumerate(pieces) if found.envelope is None}
            self._laid_out = plan
        return self._layouts

    def finish(self, prepared: Prepared, location: Location) -> Sending:
        """Not collective. Copy the rest, and send all."""
        try:
            staged = prepared.staging.finish()
        finally:
            done = time.monotonic()
            prepared.staged()
        report = _report(staged, self._gang.rank)
        storing = self._upload.begin([(location.key(file.layout.name), file) for file in staged])
        return Sending(report, prepared.began, done, storing)

    def close(self) -> None:
        self._upload.close()
        self.buffers.close()


class _Archives:
    """`torch.save` of values that are no tensors, of which few change from save to save: an optimizer's options."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[bytes, bytes]] = {}

    def of(self, name: str, value: Any) -> io.BytesIO:
        pickled = pickle.dumps(value)  # of equal bytes are equal values, of equal types
        known, archive = self._kept.get(name, (b"", b""))
        if pickled != known:
            stream = io.BytesIO()
            torch.save(value, stream)
            archive = stream.getvalue()
            self._kept[name] = pickled, archive
        return io.BytesIO(archive)


def _archive_bytes(source: Source) -> int:
    return len(source.getbuffer()) if isinstance(source, io.BytesIO) else 0


def _report(staged: list[StagedFile], rank: int) -> Report:
    files: list[File] = []
    places: dict[MetadataIndex, Any] = {}
    for file in staged:
        name = file.layout.name
        files.append(File(name=name, size=file.layout.size, blocks=file.sums, rank=rank))
        for slot in file.layout.slots:
            length = file.archives.get(slot.index, slot.room)
            payload = slot.payload if slot.envelope is not None and slot.envelope.payload else None
            places[slot.index] = metadata_format.stored_at(name, slot.offset, length, payload)
    return Report(tuple(files), places)


def store_metadata(
    store: Store, location: Location, plan: Plan, reports: list[Report], assets: Mapping[str, bytes]
) -> tuple[File, ...]:
    """On rank 0, once all ranks have staged their files. Returns the files of the whole save."""
    metadata = plan.own_metadata()
    metadata.storage_data = {index: place for report in reports for index, place in report.places.items()}
    body = metadata_format.encode(metadata, str(location))
    bodies = {**{f"{ASSETS}{name}": asset for name, asset in assets.items()}, METADATA: body}
    puts = [partial(store.put, location.key(name), each) for name, each in bodies.items()]
    at_once(puts, "everstep-metadata")
    described = [describe_file(name, each, 0) for name, each in bodies.items()]
    return (*(file for report in reports for file in report.files), *described)
