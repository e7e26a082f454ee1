"""DCP's storage reader over everstep's stores: no byte is used that does not match what was committed."""

from __future__ import annotations

import io
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from everstep.catalog import File, Location, Manifest, Store
from everstep.catalog.keys import METADATA
from everstep.checkpoint import metadata as metadata_format
from everstep.checkpoint.blocks import check_blocks, covering, join, read_verified, read_whole
from everstep.errors import CheckpointCorruptError


class ShardReader(StorageReader):
    """Reads one committed save. `manifest` has been checked against the register's digest."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest
        self.location = Location.parse(manifest.location)
        self._metadata: Metadata | None = None
        self._files = {file.name: file for file in manifest.files}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one load to the next but what was verified."""

    @property
    def metadata(self) -> Metadata:
        if self._metadata is None:
            file = self._file(METADATA)
            self._metadata = metadata_format.decode(read_whole(self.store, self.location.key(METADATA), file))
        return self._metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            by_file[self._place(item.storage_index).relative_path].append(item)
        for name, items in sorted(by_file.items()):
            for body, item in self._fetch(name, items):
                _deliver(body, item, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def read_tensor(self, name: str) -> torch.Tensor | None:
        """A tensor that was saved in one piece; None where the checkpoint has none of this name."""
        if name not in self.metadata.state_dict_metadata:
            return None
        indices = [index for index in self.metadata.storage_data if index.fqn == name]
        if len(indices) != 1:
            raise CheckpointCorruptError(f"{name} is stored in {len(indices)} pieces, expected one")
        place = self._place(indices[0])
        file = self._file(place.relative_path)
        span = covering(place.offset, place.length, file.size)
        body = read_verified(self.store, self.location.key(file.name), file, span)
        return _tensor(memoryview(body)[place.offset - span.start :][: place.length])

    def _fetch(self, name: str, items: list[ReadItem]) -> Iterator[tuple[memoryview, ReadItem]]:
        """The archive of each item, in the order of the file."""
        file = self._file(name)
        ordered = sorted(items, key=lambda item: int(self._place(item.storage_index).offset))
        wanted = [(item, self._place(item.storage_index)) for item in ordered]
        spans = join(covering(place.offset, place.length, file.size) for _, place in wanted)
        rest = iter(wanted)
        current = next(rest, None)
        for span in spans:
            body = memoryview(read_verified(self.store, self.location.key(name), file, span))
            while current is not None and current[1].offset + current[1].length <= span.end:
                item, place = current
                yield body[place.offset - span.start :][: place.length], item
                current = next(rest, None)

    def _place(self, index: MetadataIndex) -> Any:
        place = self.metadata.storage_data.get(index)
        if place is None:
            raise CheckpointCorruptError(f".metadata does not say where {index.fqn} is stored")
        if not 0 <= place.offset <= place.offset + place.length <= self._file(place.relative_path).size:
            raise CheckpointCorruptError(f".metadata places {index.fqn} outside of {place.relative_path}")
        return place

    def _file(self, name: str) -> File:
        file = self._files.get(name)
        if file is None:
            raise CheckpointCorruptError(f"{name} is not in the manifest of {self.location}")
        check_blocks(file)
        return file

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


def _tensor(archive: memoryview) -> torch.Tensor:
    loaded = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    if not isinstance(loaded, torch.Tensor):
        raise CheckpointCorruptError(f"expected a tensor, found {type(loaded).__name__}")
    return loaded


def _deliver(archive: memoryview, item: ReadItem, planner: LoadPlanner) -> None:
    if item.type == LoadItemType.BYTE_IO:
        planner.load_bytes(item, io.BytesIO(archive))
        return
    tensor = narrow_tensor_by_index(_tensor(archive), item.storage_offsets, item.lengths)
    target = planner.resolve_tensor(item).detach()
    if target.size() != tensor.size():
        raise CheckpointCorruptError(
            f"{item.storage_index.fqn}: {tuple(tensor.size())} is stored where {tuple(target.size())} was promised"
        )
    target.copy_(tensor)
    planner.commit_tensor(item, target)
