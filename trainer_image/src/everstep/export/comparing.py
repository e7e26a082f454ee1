"""What differs between two committed saves: names, types and shapes by their metadata, bytes by the sums of their
blocks, which costs no read of a tensor; values where they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from everstep.catalog import Manifest
from everstep.catalog.manifest import flat
from everstep.catalog.sums import BLOCK
from everstep.export.saved import SavedTensors

How = Literal["only in A", "only in B", "other shape", "other type", "bytes", "stored otherwise", "values"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One tensor. `detail` says it in words; `largest` is the largest absolute difference, where values were read."""

    name: str
    how: How
    detail: str
    largest: float | None = None


def facts(a: Manifest, b: Manifest) -> dict[str, tuple[Any, Any]]:
    """What two manifests say differently beside their files, by the field's path."""
    left, right = _flat(a), _flat(b)
    return {
        name: (left.get(name), right.get(name)) for name in sorted({*left, *right}) if left.get(name) != right.get(name)
    }


def _flat(manifest: Manifest) -> dict[str, Any]:
    content = manifest.model_dump(mode="json", exclude={"files", "location", "started", "written"})
    found: dict[str, Any] = {"files": len(manifest.files), "bytes": manifest.bytes}
    return found | flat(content)


def differences(a: SavedTensors, b: SavedTensors, values: bool = False) -> Iterator[Difference]:
    """Tensors that differ, in A's order. With `values`, bytes are read and verified, one tensor of each at a time."""
    left = {spec.name: spec for spec in a.specs()}
    right = {spec.name: spec for spec in b.specs()}
    for name in [*left, *(name for name in right if name not in left)]:
        if name not in right:
            yield Difference(name, "only in A", f"{left[name].dtype}, {left[name].shape}")
        elif name not in left:
            yield Difference(name, "only in B", f"{right[name].dtype}, {right[name].shape}")
        elif left[name].shape != right[name].shape:
            yield Difference(name, "other shape", f"{left[name].shape} and {right[name].shape}")
        elif left[name].dtype != right[name].dtype:
            yield Difference(name, "other type", f"{left[name].dtype} and {right[name].dtype}")
        else:
            stored = _stored(a, b, name)
            found = _values(a, b, name) if stored is not None and values else stored
            if found is not None:
                yield found


def _stored(a: SavedTensors, b: SavedTensors, name: str) -> Difference | None:
    """By sums alone: None where all blocks around the tensor are the same. A block may hold a neighbour's bytes too."""
    left = {piece.offsets: piece for piece in a.pieces(name)}
    right = {piece.offsets: piece for piece in b.pieces(name)}
    differing = total = 0
    for offsets, one in left.items():
        other = right.get(offsets)
        if other is None or (one.sizes, one.start % BLOCK, one.length) != (
            other.sizes, other.start % BLOCK, other.length,
        ):  # fmt: skip
            return Difference(name, "stored otherwise", "only its values can tell: --values")
        pairs = list(zip(a.blocks(one), b.blocks(other), strict=False))
        total += len(pairs)
        differing += sum(first != second for first, second in pairs)
    return Difference(name, "bytes", f"{differing} of {total} blocks") if differing else None


def _values(a: SavedTensors, b: SavedTensors, name: str) -> Difference | None:
    one, other = a.read(name).reshape(-1), b.read(name).reshape(-1)
    if torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
        return None
    wide = torch.complex128 if one.is_complex() else torch.float64
    apart = (one.to(wide) - other.to(wide)).abs()
    count = int((one != other).sum())
    largest = float(apart.max())
    return Difference(name, "values", f"{count} of {one.numel()} elements", largest)
