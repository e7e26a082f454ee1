"""One save, from live tensors to stored shards, on all ranks; the commit is the caller's."""

from __future__ import annotations

import warnings
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_saver import save

from everstep.catalog import File, Location, Store
from everstep.checkpoint.gang import Failure, Gang, worst
from everstep.checkpoint.writer import ShardWriter


def write_shards(store: Store, gang: Gang, location: Location, state: dict[str, Any]) -> tuple[File, ...]:
    """Collective. Returns on rank 0 the files of all ranks, else nothing. Where one rank fails, all raise its error."""
    writer = ShardWriter(store, location)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            save(
                state,
                storage_writer=writer,
                planner=DefaultSavePlanner(),
                process_group=gang.group,
                no_dist=not gang.distributed,
            )
        except CheckpointException as error:
            raise worst([Failure.of(rank, found) for rank, (found, _) in error.failures.items()]) from error
    return writer.files
