"""Does data resume where it was? The question that a run answers too late, asked in a test of one's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from everstep.checkpoint.state import plain
from everstep.checkpoint.state.objects import accessors
from everstep.data.draws import draws_kept
from everstep.errors import CheckpointError, InvalidOperationError


@dataclass(frozen=True)
class Difference:
    """The first batch that is not what it would have been."""

    at: int
    """After how many batches the state was taken."""
    batch: int
    """Which batch, counted from 0 at the beginning of the run."""
    place: str
    """Where in the batch, such as `['tokens'][2, 17]`; empty where it is the whole of it."""
    expected: str
    found: str

    def __str__(self) -> str:
        where = f"batch {self.batch}{f', {self.place}' if self.place else ''}"
        return f"restored after {self.at} batches, {where}: expected {self.expected}, found {self.found}"


class ReplayError(CheckpointError):
    """Restored data does not go on as the original did."""

    def __init__(self, difference: Difference) -> None:
        super().__init__(str(difference))
        self.difference = difference

    def __reduce__(self) -> Any:
        return type(self), (self.difference,)


def verify(make: Callable[[], Any], *, steps: int, at: int | Iterable[int] | None = None) -> None:
    """Replay restored data against the original, and raise ReplayError at the first difference.

    `make` returns new data, as a new process would make it: an iterator with state. The original gives `steps` batches;
    `at` says after how many of them to take states (default: none, one, half of them, all but one). States pass through
    the form that a checkpoint keeps them in, and taking one must not disturb what comes next. Data that ends must end
    at the same batch.
    """
    if steps < 1:
        raise InvalidOperationError(f"steps={steps}: nothing to replay")
    points = sorted({0, 1, steps // 2, steps - 1} if at is None else {at} if isinstance(at, int) else set(at))
    if not points or not 0 <= points[0] <= points[-1] < steps:
        raise InvalidOperationError(f"at={at}: take states after 0 to {steps - 1} of {steps} batches")
    original = _made(make)
    expected = [_next(original) for _ in range(steps)]
    states = _states(_made(make), expected, points)
    for point in points:
        restored = _made(make)
        accessors(restored, _MADE)[1](plain.unpack(states[point]))
        for number in range(point, steps):
            _compare(point, number, expected[number], _next(restored))


_MADE = "what make() returned"
_END = "the end of the data"


def _made(make: Callable[[], Any]) -> Any:
    """With the same random numbers each time: some samplers draw a seed when they are made."""
    with draws_kept(0):
        return make()


def _states(data: Any, expected: Sequence[Any], points: Sequence[int]) -> dict[int, torch.Tensor]:
    states = {}
    for number, batch in enumerate(expected):
        if number in points:
            states[number] = plain.pack(accessors(data, _MADE)[0](), "data")
        _compare(max((point for point in points if point <= number), default=0), number, batch, _next(data))
    return states


def _next(data: Any) -> Any:
    """A copy: some loaders use one buffer again and again."""
    return copy.deepcopy(next(data, _END))


def _compare(at: int, number: int, expected: Any, found: Any) -> None:
    differing = first_difference(expected, found)
    if differing is not None:
        raise ReplayError(Difference(at, number, *differing))


def first_difference(expected: Any, found: Any, place: str = "") -> tuple[str, str, str] | None:
    """Where two batches differ first, and what stands there in each; NaN is equal to NaN."""
    if isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor):
        if expected.dtype == found.dtype and expected.shape == found.shape:
            return _first_element(_bits(expected), _bits(found), expected, found, place)
    elif isinstance(expected, np.ndarray) and isinstance(found, np.ndarray):
        if expected.dtype == found.dtype and expected.shape == found.shape and expected.dtype.kind in "biufc":
            return first_difference(torch.from_numpy(expected.copy()), torch.from_numpy(found.copy()), place)
        if expected.shape == found.shape and bool(np.all(expected == found)):
            return None
    elif isinstance(expected, Mapping) and isinstance(found, Mapping):
        if list(expected) == list(found):
            parts = (first_difference(expected[key], found[key], f"{place}[{key!r}]") for key in expected)
            return next((part for part in parts if part is not None), None)
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        if len(expected) == len(found):
            pairs = enumerate(zip(expected, found, strict=True))
            parts = (first_difference(mine, theirs, f"{place}[{number}]") for number, (mine, theirs) in pairs)
            return next((part for part in parts if part is not None), None)
    elif type(expected) is type(found) and (expected == found or (expected != expected and found != found)):
        return None
    return place, summary(expected), summary(found)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).reshape(flat.numel(), -1) if flat.numel() else flat.reshape(0, 1)


def _first_element(
    mine: torch.Tensor, theirs: torch.Tensor, expected: torch.Tensor, found: torch.Tensor, place: str
) -> tuple[str, str, str] | None:
    unequal = (mine != theirs).any(dim=1)
    if not bool(unequal.any()):
        return None
    index = np.unravel_index(int(unequal.int().argmax()), expected.shape) if expected.ndim else ()
    where = ", ".join(str(int(part)) for part in index)
    at = tuple(int(part) for part in index)
    return (
        f"{place}[{where}]" if where else place,
        f"{expected[at].item()!r} in {summary(expected)}",
        f"{found[at].item()!r} in {summary(found)}",
    )


def summary(value: Any) -> str:
    """A batch or sample in few words: types, shapes and first values."""
    if isinstance(value, torch.Tensor):
        first = ", ".join(f"{each.item():.6g}" for each in value.detach().cpu().reshape(-1)[:4])
        more = ", …" if value.numel() > 4 else ""
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} ({first}{more})"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)} ({', '.join(map(str, value.reshape(-1)[:4]))})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {summary(item)}" for key, item in list(value.items())[:4]) + "}"
    if isinstance(value, list | tuple) and len(value) > 4:
        return f"{type(value).__name__} of {len(value)}, first {summary(value[0])}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
