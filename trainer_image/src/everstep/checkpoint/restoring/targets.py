"""Where stored bytes go on one rank: from a range of a file to the part of a tensor that it is.

A tensor's bytes lie in the file in row-major order, so a part of it is a number of ranges, whatever dimensions it was
cut along. All arithmetic here is in bytes: the boundary of a block may lie inside of an element.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

import torch

from everstep.catalog.manifest import BLOCK

Range = tuple[int, int]
"""Bytes [start, end) of one file."""


class Target(ABC):
    """Somebody who waits for bytes of one file. Several threads may hand them over at the same time."""

    def __init__(self, ranges: list[Range], left: int) -> None:
        self.ranges = ranges
        """What it needs, ascending."""
        self.left = left
        """Bytes that it still waits for."""
        self._lock = threading.Lock()

    def memory(self, start: int, end: int) -> torch.Tensor | None:
        """The memory where these bytes belong, if they may be written there straight away; `count` them then."""
        return None

    @abstractmethod
    def take(self, start: int, data: torch.Tensor) -> None:
        """Take what is wanted of `data`, which are the file's bytes from `start`."""

    def count(self, taken: int) -> None:
        with self._lock:
            self.left -= taken


class Rows(Target):
    """Part of a tensor whose bytes lie in the file as they are in memory.

    `base`: where they begin; `shape`: that of the stored tensor; `offsets` and `lengths`: which part of it is wanted;
    `into`: what to fill, of shape `lengths` and of the stored type, on any device and with any strides.
    """

    def __init__(
        self, base: int, shape: Sequence[int], offsets: Sequence[int], lengths: Sequence[int], into: torch.Tensor
    ) -> None:
        self._base = base
        size = into.element_size()
        into = into.unsqueeze(-1).view(torch.uint8)
        self._shape, self._offsets, self._lengths = [*shape, size], [*offsets, 0], [*lengths, size]
        if into.is_contiguous():
            while len(self._shape) > 1 and self._shape[-1] == self._lengths[-1]:
                inner = self._shape.pop()
                self._offsets.pop(), self._lengths.pop()
                for each in (self._shape, self._offsets, self._lengths):
                    each[-1] *= inner
            into = into.view(self._lengths)
        self._into = into
        self.home = (into.device, into.data_ptr(), into.size(), into.stride())
        """Equal for two that fill the same memory."""
        self._straight = into.dim() == 1 and into.device.type == "cpu"
        spans = _spans(self._shape, self._offsets, self._lengths)
        super().__init__([(base + start, base + end) for start, end in spans], into.numel())

    def memory(self, start: int, end: int) -> torch.Tensor | None:
        first, last = self.ranges[0]
        if not self._straight or start < first or end > last:
            return None
        return self._into[start - first : end - first]

    def take(self, start: int, data: torch.Tensor) -> None:
        low, high = max(start, self.ranges[0][0]), min(start + data.numel(), self.ranges[-1][1])
        if low < high:
            part = data[low - start : high - start]
            taken = _copy(part, low - self._base, self._shape, self._offsets, self._lengths, self._into)
            self.count(taken)


class Whole(Target):
    """A range that is of use only when all of it is there: `finish` gets it then, once."""

    def __init__(self, start: int, end: int, finish: Callable[[torch.Tensor], None]) -> None:
        super().__init__([(start, end)], end - start)
        self._finish = finish
        self._body: torch.Tensor | None = None

    def take(self, start: int, data: torch.Tensor) -> None:
        first, last = self.ranges[0]
        low, high = max(start, first), min(start + data.numel(), last)
        if low >= high:
            return
        with self._lock:
            if self._body is None:
                self._body = torch.empty(last - first, dtype=torch.uint8, device="cpu")
            self._body[low - first : high - first] = data[low - start : high - start]
            self.left -= high - low
            if self.left == 0:
                body, self._body = self._body, None
                self._finish(body)


def _spans(shape: Sequence[int], offsets: Sequence[int], lengths: Sequence[int]) -> list[Range]:
    """The ranges of a part of an array of bytes; what is less than a block apart is one."""
    if len(shape) == 1:
        return [(offsets[0], offsets[0] + lengths[0])]
    inner = _spans(shape[1:], offsets[1:], lengths[1:])
    row = math.prod(shape[1:])
    first, last = offsets[0] * row, (offsets[0] + lengths[0] - 1) * row
    if len(inner) == 1 and row - (inner[0][1] - inner[0][0]) < BLOCK:
        return [(first + inner[0][0], last + inner[0][1])]
    return [(at + start, at + end) for at in range(first, last + 1, row) for start, end in inner]


def _copy(
    data: torch.Tensor,
    first: int,
    shape: Sequence[int],
    offsets: Sequence[int],
    lengths: Sequence[int],
    into: torch.Tensor,
) -> int:
    """Copy what is wanted of `data`, the bytes from `first` of an array of `shape`; returns how many those are."""
    end = first + data.numel()
    low, high = offsets[0], offsets[0] + lengths[0]
    if len(shape) == 1:
        low, high = max(first, low), min(end, high)
        if low < high:
            into[low - offsets[0] : high - offsets[0]].copy_(data[low - first : high - first])
        return max(0, high - low)
    row = math.prod(shape[1:])
    copied = 0
    begin, stop = max(low, -(-first // row)), min(high, end // row)
    if begin < stop:
        rows = data[begin * row - first : stop * row - first].view(stop - begin, *shape[1:])
        for dimension in range(1, len(shape)):
            rows = rows.narrow(dimension, offsets[dimension], lengths[dimension])
        into[begin - low : stop - low].copy_(rows)
        copied += rows.numel()
    for number in {first // row, end // row}:  # rows of which only a part is here
        start, finish = max(first, number * row), min(end, (number + 1) * row)
        if low <= number < high and 0 < finish - start < row:
            part = data[start - first : finish - first]
            copied += _copy(part, start - number * row, shape[1:], offsets[1:], lengths[1:], into[number - low])
    return copied


class FileTargets:
    """All targets of one file, found by range. Targets may overlap."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self.targets = sorted(targets, key=lambda target: target.ranges[0][0])
        self._starts = [target.ranges[0][0] for target in self.targets]
        self._ends = list(accumulate((target.ranges[-1][1] for target in self.targets), max))

    def at(self, start: int, end: int) -> list[Target]:
        found = self.targets[bisect_right(self._ends, start) : bisect_left(self._starts, end)]
        return [target for target in found if target.ranges[-1][1] > start]

    def memory(self, start: int, end: int) -> tuple[torch.Tensor, Target] | None:
        """Memory of a target that all of the range belongs to."""
        for target in self.at(start, end):
            memory = target.memory(start, end)
            if memory is not None:
                return memory, target
        return None

    def take(self, start: int, data: torch.Tensor, written: Target | None = None) -> None:
        """Hand the file's bytes from `start` to everybody but the one in whose memory they were written."""
        for target in self.at(start, start + data.numel()):
            if target is written:
                target.count(data.numel())
            else:
                target.take(start, data)
