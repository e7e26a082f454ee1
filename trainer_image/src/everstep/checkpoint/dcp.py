"""What every call into torch.distributed.checkpoint needs around it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.checkpoint.api import CheckpointException

from everstep.checkpoint.gang import Failure, worst


@contextmanager
def one_error() -> Iterator[None]:
    """What any rank raised inside becomes the one CheckpointError that all raise; one process is no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            raise worst([Failure.of(rank, found) for rank, (found, _) in error.failures.items()]) from error
