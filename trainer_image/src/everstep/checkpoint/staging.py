"""One rank's part of a save, laid out as files in memory: what a stock DCP reader expects, small items first.

Each item is a `torch.save` archive at the offset that the metadata names. Small items lie together at the front, so
that a reader gets all scalars of an optimizer in one request.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType

MAX_FILE_BYTES = 512 << 20
"""A rank's items are spread over files of about this size; one item is never split."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where one item lies in its file."""

    index: MetadataIndex
    offset: int
    length: int
    payload: int
    """Bytes of data alone, without the archive around them."""
    start: int | None = None
    """Where in the file the data begin, if they are a tensor's in row-major order: readers go straight to its rows."""


@dataclass(frozen=True, slots=True)
class StagedFile:
    name: str
    body: bytes
    items: tuple[Placed, ...]


def item_bytes(item: WriteItem) -> int:
    if item.type == WriteItemType.BYTE_IO or item.tensor_data is None:
        return 0
    count = 1
    for size in item.tensor_data.chunk.sizes:
        count *= size
    return count * item.tensor_data.properties.dtype.itemsize


def arrange(items: list[WriteItem], most: int = MAX_FILE_BYTES) -> list[list[WriteItem]]:
    """Items by file, smallest first; ties keep the plan's order."""
    files: list[list[WriteItem]] = []
    filled = 0
    for item in sorted(items, key=item_bytes):
        size = item_bytes(item)
        if not files or (filled and filled + size > most):
            files.append([])
            filled = 0
        files[-1].append(item)
        filled += size
    return files


def stage(plan: SavePlan, planner: SavePlanner, rank: int) -> Iterator[StagedFile]:
    """One file at a time, so that no more than one is in memory where the caller lets go of it."""
    for number, items in enumerate(arrange(list(plan.items))):
        yield _stage_file(f"__{rank}_{number}.distcp", items, planner)


def _stage_file(name: str, items: list[WriteItem], planner: SavePlanner) -> StagedFile:
    stream = io.BytesIO()
    placed = [_append(stream, item, planner) for item in items]
    body = stream.getvalue()  # no copy, and no view that a failed upload's traceback would keep the stream open by
    return StagedFile(name, body, tuple(placed))


def _append(stream: io.BytesIO, item: WriteItem, planner: SavePlanner) -> Placed:
    offset = stream.tell()
    data = planner.resolve_data(item)
    if isinstance(data, torch.Tensor):
        tensor = data.detach().cpu()
        if tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()  # a view of padded storage would drag the whole of it along
        torch.save(tensor, stream)
        payload = tensor.nbytes
        start = _start(stream, offset) if payload and tensor.is_contiguous() else None
    else:
        payload = stream.write(data.getbuffer())
        start = None
    return Placed(item.index, offset, stream.tell() - offset, payload, start)


def _start(stream: io.BytesIO, offset: int) -> int:
    with stream.getbuffer() as written:
        archive = torch._C.PyTorchFileReader(io.BytesIO(written[offset:]))
    return offset + int(archive.get_record_offset("data/0"))  # type: ignore[attr-defined]
