"""Which samples of a step are this rank's: a contiguous share of each global batch."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch.distributed as dist

from everstep.errors import InvalidOperationError


@dataclass(frozen=True, slots=True)
class Share:
    """`global_batch` samples a step over all ranks. It stays as it is when the number of ranks changes."""

    global_batch: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.global_batch < 1:
            raise InvalidOperationError(f"global_batch: {self.global_batch}; a step needs at least one sample")
        if not 0 <= self.rank < self.world_size:
            raise InvalidOperationError(f"rank {self.rank} is none of {self.world_size} ranks")
        if self.global_batch % self.world_size:
            below = self.global_batch // self.world_size * self.world_size
            near = " or ".join(str(size) for size in (below, below + self.world_size) if size)
            raise InvalidOperationError(
                f"global_batch: {self.global_batch} samples do not divide among {self.world_size} ranks; use {near}, "
                f"or a number of ranks that divides {self.global_batch}"
            )

    @classmethod
    def here(cls, global_batch: int, rank: int | None = None, world_size: int | None = None) -> Share:
        """Raises InvalidOperationError where torchrun started several ranks and there is no process group yet."""
        return cls(global_batch, *gang(rank, world_size))

    @property
    def size(self) -> int:
        """Samples a step on this rank."""
        return self.global_batch // self.world_size

    @property
    def first(self) -> int:
        """Where in the global batch this rank's samples begin."""
        return self.rank * self.size


def gang(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Rank and world size: as given, or those of the default process group, or of the only process."""
    if (rank is None) != (world_size is None):
        raise InvalidOperationError("pass both rank= and world_size=, or neither")
    if rank is not None and world_size is not None:
        return rank, world_size
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched != "1":
        raise InvalidOperationError(
            f"WORLD_SIZE is {launched}, but there is no process group: call torch.distributed.init_process_group() "
            "first, or pass rank= and world_size=, or every rank would read the same samples"
        )
    return 0, 1
