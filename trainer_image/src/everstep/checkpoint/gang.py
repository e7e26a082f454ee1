"""The ranks of one worker group as the engine sees them: one rank alone, or a group of its own over CPU memory.

Every step that can fail on one rank alone ends in an exchange of outcomes, so that all ranks go on or all of them fail,
with the same typed error.
"""

from __future__ import annotations

import logging
import os
import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from everstep.errors import (
    CheckpointCorruptError,
    CheckpointError,
    FencedError,
    InvalidOperationError,
    StorageRefusedError,
    StorageUnavailableError,
)

log = logging.getLogger("everstep")

T = TypeVar("T")
S = TypeVar("S")

LEAST_PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others, who may be waiting for storage."""

_LENGTH = struct.Struct("<Q")
_ROOM = 4096
"""Bytes that each rank tells in one exchange; only where one of them has more to tell there is a second."""

_PADDED = 64 << 20
"""Bytes up to which all tell at once, each as much as who has most to tell: beyond, one after the other."""

_PRECEDENCE = (FencedError, CheckpointCorruptError, StorageRefusedError, StorageUnavailableError)


@dataclass(frozen=True, slots=True)
class Failure:
    rank: int
    error: CheckpointError

    @classmethod
    def of(cls, rank: int, error: BaseException) -> Failure:
        if isinstance(error, CheckpointError):
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:  # noqa: BLE001 - it can fail in any way
                return cls(rank, CheckpointError(str(error)))
            return cls(rank, error)
        return cls(rank, CheckpointError(f"{type(error).__name__}: {error}"))


def worst(failures: Sequence[Failure]) -> CheckpointError:
    """The one error that all ranks raise; names the ranks that failed."""
    ordered = sorted(failures, key=lambda f: (_rank_of_kind(f.error), f.rank))
    chosen = ordered[0]
    ranks = sorted({failure.rank for failure in failures})
    if isinstance(chosen.error, FencedError) or len(ranks) == 0:
        return chosen.error
    kind = type(chosen.error)
    named = (
        f"rank {ranks[0]}"
        if len(ranks) == 1
        else f"ranks {', '.join(map(str, ranks[:8]))}{'…' if len(ranks) > 8 else ''}"
    )
    try:
        error = kind(f"{named}: {chosen.error}")
    except TypeError:
        return CheckpointError(f"{named}: {chosen.error}")
    error.__dict__.update(chosen.error.__dict__)
    return error


def _rank_of_kind(error: CheckpointError) -> int:
    for index, kind in enumerate(_PRECEDENCE):
        if isinstance(error, kind):
            return index
    return len(_PRECEDENCE)


def _patience() -> timedelta:
    """That of the default group: who allows a step or an evaluation an hour there means it here too."""
    default = dist.distributed_c10d._get_default_group()
    backends = [default._get_backend(device) for device in default._device_types]
    found = [backend.options._timeout for backend in backends]
    return max([LEAST_PATIENCE, *(timeout for timeout in found if isinstance(timeout, timedelta))])


class PendingSum:
    """A sum over all ranks under way."""

    def __init__(self, tensor: torch.Tensor, work: Any | None) -> None:
        self._tensor = tensor
        self._work = work

    def wait(self) -> list[int]:
        if self._work is not None:
            self._work.wait()
            self._work = None
        return [int(value) for value in self._tensor.tolist()]


class Gang:
    """Collective methods must be called by all ranks in the same order."""

    def __init__(self) -> None:
        self.distributed = dist.is_available() and dist.is_initialized()
        launched = os.environ.get("WORLD_SIZE", "1")
        if not self.distributed and launched != "1":
            raise InvalidOperationError(
                f"WORLD_SIZE is {launched}, but there is no process group: call torch.distributed.init_process_group() "
                "before you make the Checkpointer, or every rank would save alone"
            )
        self.rank = dist.get_rank() if self.distributed else 0
        self.world_size = dist.get_world_size() if self.distributed else 1
        self.group: Any = dist.new_group(backend="gloo", timeout=_patience()) if self.distributed else None

    def close(self) -> None:
        """Give the group back. Its threads end here: one that still lets go of a tensor while the interpreter ends
        would abort the process."""
        if self.group is not None:
            group, self.group = self.group, None
            if dist.is_initialized():
                dist.destroy_process_group(group)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def broadcast(self, value: T | None) -> T:
        """Rank 0's value."""
        if not self.distributed:
            return value  # type: ignore[return-value]
        box: list[Any] = [value if self.leads else None]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]  # type: ignore[no-any-return]

    def all_gather(self, value: T) -> list[T]:
        """Everybody's value, by rank."""
        if not self.distributed:
            return [value]
        body = pickle.dumps(value)
        told = self._exchange(_LENGTH.pack(len(body)) + body[: _ROOM - _LENGTH.size], _ROOM)
        lengths = [_LENGTH.unpack_from(each)[0] for each in told]
        first = _LENGTH.size
        if max(lengths) * self.world_size > _PADDED:
            told, first = [self._spread(body, length, rank) for rank, length in enumerate(lengths)], 0
        elif max(lengths) > _ROOM - first:
            told, first = self._exchange(body, max(lengths)), 0
        return [pickle.loads(each[first : first + length]) for each, length in zip(told, lengths, strict=True)]

    def _spread(self, body: bytes, length: int, source: int) -> memoryview:
        """The body of one rank, of so many bytes."""
        found = torch.frombuffer(bytearray(body if source == self.rank else length), dtype=torch.uint8)
        dist.broadcast(found, src=source, group=self.group)
        return found.numpy().data

    def _exchange(self, body: bytes, room: int) -> list[memoryview]:
        """Everybody's bytes, by rank, filled up to `room`."""
        mine = torch.frombuffer(bytearray(body.ljust(room, b"\0")), dtype=torch.uint8)
        all_of_them = torch.empty(room * self.world_size, dtype=torch.uint8, device="cpu")
        dist.all_gather_into_tensor(all_of_them, mine, group=self.group)
        told = all_of_them.numpy().data
        return [told[start : start + room] for start in range(0, len(told), room)]

    def everywhere(self, action: Callable[[], T]) -> T:
        """Run on each rank; where one fails, all raise."""
        result, failure = self._attempt(action)
        failures = [found for found in self.all_gather(failure) if found is not None]
        if failures:
            raise worst(failures)
        return result  # type: ignore[return-value]

    def lead(self, action: Callable[[], T]) -> T:
        """Run on rank 0; all ranks return its result or raise its error."""
        result, failure = self._attempt(action) if self.leads else (None, None)
        outcome: tuple[T | None, Failure | None] = self.broadcast((result, failure))
        if outcome[1] is not None:
            raise outcome[1].error
        return outcome[0]  # type: ignore[return-value]

    def compare(self, action: Callable[[], tuple[T, S]]) -> tuple[T, list[S]]:
        """Run on each rank; returns the rank's own result and, by rank, what each of them tells. Where one fails, all
        raise."""
        result, failure = self._attempt(action)
        told = self.all_gather((None if result is None else result[1], failure))
        failures = [found for _, found in told if found is not None]
        if failures or result is None:
            raise worst(failures)
        return result[0], [each for each, _ in told]  # type: ignore[misc]

    def collect(self, action: Callable[[], T]) -> list[T]:
        """Run on each rank; rank 0 gets the results by rank, the others none. Where one fails, all raise."""
        found = self._attempt(action)
        box: list[Any] = [None] * self.world_size if self.leads else []
        if self.distributed:
            dist.gather_object(found, box if self.leads else None, dst=0, group=self.group)
        else:
            box = [found]
        failures = [failure for _, failure in box if failure is not None]
        error: CheckpointError | None = self.broadcast(worst(failures) if failures else None)
        if error is not None:
            raise error
        return [result for result, _ in box]

    def hand_out(self, action: Callable[[], Sequence[T]]) -> T:
        """Run on rank 0, whose result has an element for each rank. Where it fails, all raise."""
        parts, failure = self._attempt(action) if self.leads else (None, None)
        if not self.distributed:
            each: Any = (None if parts is None else parts[0], failure)
        else:
            box: list[Any] = [None]
            shares = [(None, failure)] * self.world_size if parts is None else [(part, None) for part in parts]
            dist.scatter_object_list(box, shares if self.leads else None, src=0, group=self.group)
            each = box[0]
        if each[1] is not None:
            raise each[1].error
        return each[0]  # type: ignore[no-any-return]

    def twin(self) -> Gang:
        """Collective. The same ranks with a group of their own, for another thread: what it exchanges never mixes with
        what this one does."""
        return Gang()

    def _attempt(self, action: Callable[[], T]) -> tuple[T | None, Failure | None]:
        try:
            return action(), None
        except Exception as error:
            if not isinstance(error, CheckpointError | OSError):
                log.warning("rank %d:", self.rank, exc_info=True)  # the others hear what, but not where
            return None, Failure.of(self.rank, error)

    def start_sum(self, values: Sequence[int]) -> PendingSum:
        tensor = torch.tensor(list(values), dtype=torch.int64, device="cpu")
        work = (
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=self.group, async_op=True) if self.distributed else None
        )
        return PendingSum(tensor, work)
