"""One rank's part of each save, from live tensors to stored shards; the commit is the caller's.

`prepare` runs at the step boundary, in training's thread; `finish` copies the rest and stores the files, in that thread
or another; `gather` brings the ranks' reports together on rank 0.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

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
from everstep.checkpoint.saving.uploading import Upload
from everstep.checkpoint.state.application import Application, capture
from everstep.weights.assets import ASSETS


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one rank's part. `blocked`: how long training stood still for it."""

    staged: float
    uploaded: float
    blocked: float = 0.0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What a rank has stored. `places`: where its items lie in its files."""

    files: tuple[File, ...]
    places: Mapping[MetadataIndex, Any]
    times: Times

    def blocked_for(self, seconds: float) -> Report:
        return replace(self, times=replace(self.times, blocked=seconds))


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
        self._rooms: dict[MetadataIndex, int] = {}

    def prepare(self, counters: Mapping[str, int], late: Callable[[torch.Tensor], bool]) -> Prepared:
        """Collective. `late` tells which tensors do not change before `finish` is through; all others are copied now.
        The last save must be over."""
        began = time.monotonic()
        found, fits = capture(self._app, self._gang, counters, self._outline)
        plan = self.plans.plan(found, self._gang, all(fits))
        staging = self._gang.everywhere(lambda: self._take(found, plan, late))
        return Prepared(plan, staging, began)

    def _outline(self, state: dict[str, Any]) -> tuple[Outline, bool]:
        found = outline(state, self._gang.rank)
        return found, self.plans.fits(found)

    def _take(self, found: Outline, plan: Plan, late: Callable[[torch.Tensor], bool]) -> Staging:
        sources: dict[MetadataIndex, Source] = {item.index: _source(item, found.planner) for item in plan.items}
        layouts = self._layout(plan, sources)
        state = found.planner.state_dict
        owners = {item.index: state[item.index.fqn] for item in plan.items if item.type == WriteItemType.SHARD}
        staging = Staging(layouts, self.buffers.fit(layouts), sources, late, owners)
        staging.take()
        return staging

    def _layout(self, plan: Plan, sources: Sources) -> tuple[FileLayout, ...]:
        """The last one, unless the plan is new or a value has outgrown its place."""
        lengths = {index: _archive_bytes(source) for index, source in sources.items()}
        known = self._laid_out is plan and all(lengths[index] <= room for index, room in self._rooms.items())
        if not known:
            pieces = [piece(item, lengths[item.index]) for item in plan.items]
            self._layouts = arrange(pieces, self._gang.rank)
            self._rooms = {found.index: found.room for found in pieces if found.envelope is None}
            self._laid_out = plan
        return self._layouts

    def finish(self, prepared: Prepared, location: Location) -> Report:
        """Not collective. Returns once storage has acknowledged every file."""
        try:
            staged = prepared.staging.finish()
        finally:
            done = time.monotonic()
            prepared.staged()
        retries = self._upload.put([(location.key(file.layout.name), file) for file in staged])
        times = Times(done - prepared.began, time.monotonic() - done, retries=retries)
        return _report(staged, self._gang.rank, times)

    def close(self) -> None:
        self._upload.close()
        self.buffers.close()


def _source(item: WriteItem, planner: DefaultSavePlanner) -> Source:
    value = planner.state_dict[item.index.fqn]
    if isinstance(value, DTensor) and item.tensor_data and value._local_tensor.size() == item.tensor_data.chunk.sizes:
        return value._local_tensor  # the planner finds the same, by a detour for each of thousands
    return planner.resolve_data(item)


def _archive_bytes(source: Source) -> int:
    return len(source.getbuffer()) if isinstance(source, io.BytesIO) else 0


def _report(staged: list[StagedFile], rank: int, times: Times) -> Report:
    files: list[File] = []
    places: dict[MetadataIndex, Any] = {}
    for file in staged:
        name = file.layout.name
        files.append(File(name=name, size=file.layout.size, blocks=file.sums, rank=rank))
        for slot in file.layout.slots:
            length = file.archives.get(slot.index, slot.room)
            payload = slot.payload if slot.envelope is not None and slot.envelope.payload else None
            places[slot.index] = metadata_format.stored_at(name, slot.offset, length, payload)
    return Report(tuple(files), places, times)


def store_metadata(
    store: Store, location: Location, plan: Plan, reports: list[Report], assets: Mapping[str, bytes]
) -> tuple[File, ...]:
    """On rank 0, once all ranks have stored their files. Returns the files of the whole save."""
    metadata = plan.own_metadata()
    metadata.storage_data = {index: place for report in reports for index, place in report.places.items()}
    body = metadata_format.encode(metadata, str(location))
    bodies = {**{f"{ASSETS}{name}": asset for name, asset in assets.items()}, METADATA: body}
    puts = [partial(store.put, location.key(name), each) for name, each in bodies.items()]
    at_once(puts, "everstep-metadata")  # each would be a round trip before the commit
    described = [describe_file(name, each, 0) for name, each in bodies.items()]
    return (*(file for report in reports for file in report.files), *described)
