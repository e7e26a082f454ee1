"""Copies one rank's part of a save into shared memory, as the bytes of its files, and sums them on the way.

What may change as soon as training goes on is copied at the step boundary by `Staging.take`; what only the next
optimizer step changes, and it waits for this, by `Staging.finish`, which may run in another thread. The buffers are
kept from one save to the next: a fresh page costs more than the copy into it.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from awscrt import checksums
from torch.distributed.checkpoint.metadata import MetadataIndex

from everstep.catalog.sums import BLOCK
from everstep.checkpoint.saving.layout import FileLayout, Slot
from everstep.errors import InvalidOperationError
from everstep.transfer import Segment, SharedBuffer

Source = torch.Tensor | io.BytesIO
Sources = Sequence[Source]
"""By the numbers of their slots."""
_GRAIN = 1 << 18
"""Buffers are a multiple of this, so that a file that grows a little still fits."""


class Buffers:
    """One buffer a file, reused while the file fits; never more than the newest layout needs, but for the grain."""

    def __init__(self, make: Callable[[FileLayout, int], SharedBuffer] = lambda _, size: SharedBuffer(size)) -> None:
        """`make`: a buffer of so many bytes for a file."""
        self._make = make
        self._kept: list[SharedBuffer] = []
        self._written: list[FileLayout | None] = []

    @property
    def bytes(self) -> int:
        return sum(buffer.size for buffer in self._kept)

    def fit(self, layouts: tuple[FileLayout, ...]) -> list[SharedBuffer]:
        """Buffers with the archives' heads and tails in place. Nothing may read those of the last save any more."""
        self._drop(len(layouts))
        for number, layout in enumerate(layouts):
            wanted = -(-layout.size // _GRAIN) * _GRAIN
            if number < len(self._kept) and not layout.size <= self._kept[number].size <= wanted + 4 * _GRAIN:
                self._drop(number)  # before the new one is asked for: there is never room for both
            if number == len(self._kept):
                self._kept.append(self._make(layout, wanted))
                self._written.append(None)
            if self._written[number] != layout:
                _write_envelopes(layout, self._kept[number].view)
                self._written[number] = layout
        return list(self._kept)

    def close(self) -> None:
        self._drop(0)

    def _drop(self, first: int) -> None:
        for buffer in self._kept[first:]:
            _let_go(buffer)
        del self._kept[first:], self._written[first:]


def _let_go(buffer: SharedBuffer) -> None:
    with contextlib.suppress(BufferError):  # the traceback of a failed save still looks at it: it goes with that
        buffer.close()


@dataclass(frozen=True, slots=True)
class StagedFile:
    layout: FileLayout
    segment: Segment
    sums: tuple[int, ...]
    archives: Mapping[MetadataIndex, int]
    """Lengths of the archives of values that are no tensors; all others are as the layout says."""


class Staging:
    """One save's copy. `late` tells of which tensors the copy may wait for `finish`."""

    def __init__(
        self,
        layouts: tuple[FileLayout, ...],
        buffers: list[SharedBuffer],
        sources: Sources,
        late: Callable[[torch.Tensor], bool],
        owners: Mapping[int, torch.Tensor] | None = None,
    ) -> None:
        """`owners`: by number, sharded tensors of which a source is one rank's part: what is done to them is counted
        there."""
        self._layouts = layouts
        self._buffers = buffers
        self._sources = sources
        found = enumerate(sources)
        self._late = {number for number, source in found if isinstance(source, torch.Tensor) and late(source)}
        self._owners = owners or {}
        self._versions = {number: self._version(number) for number in self._late}
        self._streams = _Streams(_tensor(sources[number]) for number in self._late)

    def take(self) -> None:
        """Copy what does not wait."""
        for layout, buffer in zip(self._layouts, self._buffers, strict=True):
            for slot in layout.slots:
                if slot.number not in self._late:
                    _fill(slot, self._sources[slot.number], buffer.view)

    def finish(self) -> list[StagedFile]:
        """Copy the rest, with the sums of all.

        Raises InvalidOperationError where a tensor was changed before it was copied.
        """
        return [self._finish_file(layout, buffer) for layout, buffer in zip(self._layouts, self._buffers, strict=True)]

    def _version(self, number: int) -> tuple[int, int]:
        """Changes with each operation in place that torch counts: those of most optimizers' steps it does not."""
        own = _tensor(self._sources[number])
        return own._version, self._owners.get(number, own)._version

    def _finish_file(self, layout: FileLayout, buffer: SharedBuffer) -> StagedFile:
        sums = _Sums(buffer.view, layout.size)
        for slot in layout.slots:
            if slot.number not in self._late:
                continue
            tensor = _tensor(self._sources[slot.number])
            sums.advance(slot.payload)
            if tensor.device.type == "cpu":
                sums.copy(_bytes_of(tensor), slot.payload)
            else:
                self._streams.copy(tensor, _room_of(slot, buffer.view))
            if self._version(slot.number) != self._versions[slot.number]:
                raise InvalidOperationError(
                    f"{slot.index.fqn} was changed after its step had ended and before the next optimizer step, while "
                    "it was being saved: change parameters before the step ends, or set checkpoint.async: false"
                )
        archives = {
            slot.index: len(source.getbuffer())
            for slot in layout.slots
            if isinstance(source := self._sources[slot.number], io.BytesIO)
        }
        return StagedFile(layout, Segment(buffer, 0, layout.size), sums.done(), archives)


class _Sums:
    """CRC32C of each block of a file, made from its front to its end, in the copy where there is one."""

    def __init__(self, view: memoryview, size: int) -> None:
        self._view = view
        self._target = np.frombuffer(view, dtype=np.uint8)
        self._size = size
        self._at = 0
        self._current = 0
        self._sums: list[int] = []

    def advance(self, end: int) -> None:
        """Sum what stands in the buffer up to `end`."""
        while self._at < end:
            stop = min(end, self._at - self._at % BLOCK + BLOCK)
            self._current = checksums.crc32c(self._view[self._at : stop], self._current)
            self._pass(stop)

    def copy(self, source: np.ndarray[tuple[int], np.dtype[np.uint8]], start: int) -> None:
        """Copy `source` to `start`, which is where the sums have come to, block by block: the sum finds the bytes in
        the processor's cache."""
        end = start + len(source)
        while self._at < end:
            stop = min(end, self._at - self._at % BLOCK + BLOCK)
            self._target[self._at : stop] = source[self._at - start : stop - start]
            self._current = checksums.crc32c(self._view[self._at : stop], self._current)
            self._pass(stop)

    def _pass(self, stop: int) -> None:
        self._at = stop
        if stop % BLOCK == 0 or stop == self._size:
            self._sums.append(self._current)
            self._current = 0

    def done(self) -> tuple[int, ...]:
        self.advance(self._size)
        return tuple(self._sums)


class _Streams:
    """Copies from an accelerator beside the training's own work, but not before what was under way at the boundary."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
        self._side = {
            device: torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            for device in devices
        }
        for device, stream in self._side.items():
            stream.wait_stream(torch.cuda.current_stream(device))

    def copy(self, tensor: torch.Tensor, target: torch.Tensor) -> None:
        stream = self._side.get(tensor.device)
        if stream is None:
            target.copy_(_flat(tensor))
            return
        # A thread begins on device 0: to come back to its stream would open a context there, of every rank.
        with torch.cuda.device(tensor.device), torch.cuda.stream(stream):
            target.copy_(_flat(tensor), non_blocking=True)
        stream.synchronize()


def _tensor(source: Source) -> torch.Tensor:
    assert isinstance(source, torch.Tensor)
    return source


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """Its bytes in row-major order; a copy only where it is not laid out so."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _bytes_of(tensor: torch.Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return _flat(tensor).numpy()


def _room_of(slot: Slot, view: memoryview) -> torch.Tensor:
    assert slot.envelope is not None
    return torch.frombuffer(view, dtype=torch.uint8, offset=slot.payload, count=slot.envelope.payload)


def _fill(slot: Slot, source: Source, view: memoryview) -> None:
    if isinstance(source, io.BytesIO):
        body = source.getbuffer()
        view[slot.offset : slot.offset + len(body)] = body
        view[slot.offset + len(body) : slot.offset + slot.room] = bytes(slot.room - len(body))
    elif source.numel():
        _room_of(slot, view).copy_(_flat(source))


def _write_envelopes(layout: FileLayout, view: memoryview) -> None:
    """Everything that is the same in each save: heads, tails, and zeros between the archives."""
    end = 0
    for slot in layout.slots:
        view[end : slot.offset] = bytes(slot.offset - end)
        end = slot.offset + slot.room
        if slot.envelope is not None:
            view[slot.offset : slot.payload] = slot.envelope.head
            view[end - len(slot.envelope.tail) : end] = slot.envelope.tail
