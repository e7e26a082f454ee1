"""Where each item of a rank's part of a save lies: planned once, from shapes and types alone, before a byte is copied.

Each item is a `torch.save` archive at the offset that the metadata names, as stock DCP readers expect. Small items lie
together at the front of a rank's first file, so that a reader gets all scalars of an optimizer in one request; the
bytes of large tensors begin at page boundaries, so that they can be copied, summed and read without a shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

from everstep.checkpoint.saving.envelope import Envelope, envelope

FILE_BYTES = 96 << 20
"""What a file has at most, give or take half an item: it is one request then. Of parts a server may have to copy the
object together."""
LEAST_FILE_BYTES = 16 << 20
"""Smaller files are not worth their requests."""
CONNECTIONS = 8
"""Their number is a multiple of this, where it can be: who stores so many at a time stores as many to the end."""
MOST_FILES = 64
"""About so many a rank: each is an object to delete and a descriptor to keep. Larger ranks have larger files, stored in
parts."""
PAGE = 4096
PACKED = 64 << 10
"""Items smaller than this are not worth a page boundary."""
_ROOM = 512
"""Values that are no tensors get places of a multiple of this: a counter that grows by a digit moves nothing."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Bytes [offset, offset + room) of a file."""

    number: int
    """Of the item, among those that were arranged."""
    index: MetadataIndex
    offset: int
    room: int
    envelope: Envelope | None
    """None: a value that is no tensor, and comes as a whole archive of at most `room` bytes."""

    @property
    def payload(self) -> int:
        """Where in the file the tensor's own bytes begin."""
        return self.offset + (len(self.envelope.head) if self.envelope else 0)


@dataclass(frozen=True, slots=True)
class FileLayout:
    name: str
    size: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """An item before it has its place. `room` as in Slot."""

    index: MetadataIndex
    room: int
    envelope: Envelope | None


def shard_name(rank: int, number: int) -> str:
    """Of a rank's file; its smallest items are in that with number 0."""
    return f"__{rank}_{number}.distcp"


def piece(item: WriteItem, archive_bytes: int) -> Piece:
    """`archive_bytes`: how long the archive of a value that is no tensor is now."""
    if item.type == WriteItemType.BYTE_IO or item.tensor_data is None:
        return Piece(item.index, -(-archive_bytes // _ROOM) * _ROOM, None)
    found = envelope(tuple(item.tensor_data.chunk.sizes), item.tensor_data.properties.dtype)
    return Piece(item.index, found.length, found)


def file_bytes(total: int) -> int:
    """The share of each file of a rank that has so many bytes to store."""
    count = -(-total // (FILE_BYTES * CONNECTIONS)) * CONNECTIONS
    return -(-total // max(1, min(count, total // LEAST_FILE_BYTES, MOST_FILES)))


def arrange(pieces: Sequence[Piece], rank: int, share: int | None = None) -> tuple[FileLayout, ...]:
    """Items by file, smallest first; ties keep their order; none is split. Slots tell of each its number in `pieces`.
    `share`: bytes of a file, where they are not those of `file_bytes`; the nearest that items allow."""
    share = share or file_bytes(sum(item.room for item in pieces))
    files: list[list[Slot]] = []
    end = 0
    for number, item in sorted(enumerate(pieces), key=lambda found: found[1].room):
        if not files or (end and end + item.room // 2 > share):
            files.append([])
            end = 0
        offset = _offset(item, end)
        files[-1].append(Slot(number, item.index, offset, item.room, item.envelope))
        end = offset + item.room
    return tuple(
        FileLayout(shard_name(rank, file), slots[-1].offset + slots[-1].room, tuple(slots))
        for file, slots in enumerate(files)
    )


def _offset(item: Piece, end: int) -> int:
    """The least offset from `end` on that puts the item's bytes where they belong."""
    if item.envelope is None or item.envelope.payload < PACKED:
        return end
    head = len(item.envelope.head)
    return -(-(end + head) // PAGE) * PAGE - head
