"""One restore, on all ranks: what is committed at a resume point, verified byte for byte, into the live objects."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

from everstep.catalog import JobCatalog, Manifest, ResumePoint, Store, open_store
from everstep.checkpoint import dcp, plain
from everstep.checkpoint.blocks import patiently
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.reader import ShardReader
from everstep.checkpoint.state import COMMON, RANK, Application, Restored, apply, check_architecture, template
from everstep.errors import CheckpointCorruptError


@dataclass(frozen=True)
class Loaded:
    manifest: Manifest
    restored: Restored
    seconds: float


class Restoration:
    """`touched` tells after a failure whether live tensors may hold part of the checkpoint."""

    def __init__(self, app: Application, gang: Gang, store: Store) -> None:
        self.app = app
        self.gang = gang
        self.store = store
        self.touched = False

    def load(self, point: ResumePoint) -> Loaded:
        """Collective. Raises CheckpointCorruptError (bytes fail their digest twice), ArchitectureMismatchError."""
        started = time.monotonic()
        store = self.store if point.root is None else open_store(point.root)
        manifest = self.gang.lead(lambda: committed_manifest(JobCatalog(store), point))
        reader = ShardReader(store, manifest)
        common, own = self.gang.everywhere(lambda: self._packed(reader))
        state = self.gang.everywhere(lambda: self._template(reader, common, own))
        self.touched = True
        _load_into(state, reader, self.gang)
        restored = self.gang.everywhere(lambda: apply(self.app, state, common, own, manifest.step, self.gang))
        return Loaded(manifest, restored, time.monotonic() - started)

    def _packed(self, reader: ShardReader) -> tuple[Any, Any]:
        common = reader.read_tensor(COMMON)
        if common is None:
            raise CheckpointCorruptError(f"{reader.location} has no {COMMON}: it was not written by this engine")
        own = reader.read_tensor(f"{RANK}{self.gang.rank}")
        return plain.unpack(common), None if own is None else plain.unpack(own)

    def _template(self, reader: ShardReader, common: Any, own: Any) -> dict[str, Any]:
        check_architecture(self.app, reader.metadata)
        return template(self.app, reader.metadata, common, own)


def committed_manifest(job: JobCatalog, point: ResumePoint) -> Manifest:
    """Asked for twice before it counts as damaged."""
    try:
        manifest = patiently(lambda: job.manifest(point))
    except CheckpointCorruptError:
        manifest = patiently(lambda: job.manifest(point))
    if manifest.location != point.location:
        raise CheckpointCorruptError(f"the manifest in {point.location} is that of {manifest.location}")
    return manifest


class _Planner(DefaultLoadPlanner):
    """Loads what is not a tensor without running anybody's code."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        found = torch.load(value, map_location="cpu", weights_only=True)
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], found)


def _load_into(state: dict[str, Any], reader: ShardReader, gang: Gang) -> None:
    if not state:
        return
    with dcp.one_error():
        load(
            state,
            storage_reader=reader,
            planner=_Planner(),
            process_group=gang.group,
            no_dist=not gang.distributed,
        )
