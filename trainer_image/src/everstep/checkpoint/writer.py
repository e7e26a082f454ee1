"""DCP's storage writer over everstep's stores: every byte is summed when it is written; nothing is committed here."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from everstep.catalog import File, Location, Store
from everstep.catalog.keys import METADATA
from everstep.checkpoint import metadata as metadata_format
from everstep.checkpoint.blocks import describe_file
from everstep.checkpoint.staging import stage


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a rank reports of one item, and with the first item of a file of the file itself."""

    info: Any
    file: File | None


class ShardWriter(StorageWriter):
    """Writes one save below `location`. On rank 0, `files` lists what all ranks have written once `finish` has run."""

    def __init__(self, store: Store, location: Location) -> None:
        self.store = store
        self.location = location
        self.files: tuple[File, ...] = ()
        self._leads = False

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        raise NotImplementedError("a save has one location; make a writer for each save")

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._leads = is_coordinator

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta(checkpoint_id=str(self.location))

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [dataclasses.replace(plan, storage_data=rank) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        rank = int(plan.storage_data)
        results: list[WriteResult] = []
        for staged in stage(plan, planner, rank):
            described = describe_file(staged.name, staged.body, rank)
            self.store.put(self.location.key(staged.name), staged.body)
            for number, item in enumerate(staged.items):
                info = metadata_format.stored_at(staged.name, item.offset, item.length, item.start)
                stored = _Stored(info, described if number == 0 else None)
                results.append(WriteResult(item.index, item.payload, stored))
            del staged  # before the next one is made
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        stored = [(result.index, result.storage_data) for of_rank in results for result in of_rank]
        metadata.storage_data = {index: item.info for index, item in stored}
        body = metadata_format.encode(metadata, str(self.location))
        self.store.put(self.location.key(METADATA), body)
        shards = [item.file for _, item in stored if item.file is not None]
        self.files = (*shards, describe_file(METADATA, body, 0))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False
