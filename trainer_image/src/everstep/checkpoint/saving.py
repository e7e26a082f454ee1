"""One save, from live tensors to stored shards, on all ranks; the commit is the caller's."""

from __future__ import annotations

from typing import Any

from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_saver import save

from everstep.catalog import File, Location, Store
from everstep.checkpoint import dcp
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.writer import ShardWriter


def write_shards(store: Store, gang: Gang, location: Location, state: dict[str, Any]) -> tuple[File, ...]:
    """Collective. Returns on rank 0 the files of all ranks, else nothing. Where one rank fails, all raise its error."""
    writer = ShardWriter(store, location)
    with dcp.one_error():
        save(
            state,
            storage_writer=writer,
            planner=DefaultSavePlanner(),
            process_group=gang.group,
            no_dist=not gang.distributed,
        )
    return writer.files
