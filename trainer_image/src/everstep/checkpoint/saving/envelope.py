"""What `torch.save` writes around a tensor's bytes, so that the bytes themselves can be written raw.

torch makes it: a tensor of the same shape is saved without its data, and what comes before and after the gap is kept.
The checksum that the archive has for the data is not filled in; torch.load does not look at it, and everstep's own
covers every byte of the file.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any, cast

import torch
from torch.serialization import skip_data


@dataclass(frozen=True, slots=True)
class Envelope:
    """An archive is `head`, then `payload` bytes of the tensor in row-major order, then `tail`."""

    head: bytes
    payload: int
    tail: bytes

    @property
    def length(self) -> int:
        return len(self.head) + self.payload + len(self.tail)


@lru_cache(maxsize=4096)
def envelope(shape: tuple[int, ...], dtype: torch.dtype) -> Envelope:
    """Of a contiguous tensor. Its memory is asked for and never touched."""
    hollow = torch.empty(shape, dtype=dtype, device="cpu")
    if not hollow.nbytes:
        stream = io.BytesIO()
        torch.save(hollow, stream)
        return Envelope(stream.getvalue(), 0, b"")
    sink = _Sink()
    with skip_data():
        torch.save(hollow, cast(IO[bytes], sink))
    head_end = _payload_start(sink)
    return Envelope(sink.read(0, head_end), hollow.nbytes, sink.read(head_end + hollow.nbytes, sink.end))


class _Sink(io.RawIOBase):
    """Keeps what is written and skips what is sought over."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[tuple[int, bytes]] = []
        self.at = 0
        self.end = 0

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        piece = bytes(data)
        self.pieces.append((self.at, piece))
        self.at += len(piece)
        self.end = max(self.end, self.at)
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self.at = (0, self.at, self.end)[whence] + offset
        self.end = max(self.end, self.at)
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, start: int, end: int) -> bytes:  # type: ignore[override]
        found = bytearray(end - start)
        for at, piece in self.pieces:
            if start <= at and at + len(piece) <= end:
                found[at - start : at - start + len(piece)] = piece
        return bytes(found)


def _payload_start(sink: _Sink) -> int:
    """The gap: the one place that was sought over."""
    expected = 0
    for at, piece in sink.pieces:
        if at != expected:
            return expected
        expected = at + len(piece)
    raise AssertionError("torch.save wrote data that it was told to skip")  # pragma: no cover
