"""Whether a checkpoint fits what is to be loaded: found out before any live tensor is touched, and said so that it
can be mended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem
from torch.distributed.tensor import DTensor

from everstep.catalog import Manifest
from everstep.errors import ArchitectureMismatchError, CheckpointUnreadableError

SHOWN = 3
"""Differences that a message names."""


@dataclass(frozen=True)
class Configuration:
    """How a checkpoint was saved, or is to be loaded."""

    world_size: int
    mesh: Mapping[str, Any]
    digest: str | None

    @classmethod
    def of(cls, manifest: Manifest) -> Configuration:
        return cls(manifest.world_size, manifest.mesh, manifest.config_digest)

    def __str__(self) -> str:
        mesh = "x".join(f"{name}={size}" for name, size in self.mesh.items()) or "none"
        ranks = "1 rank" if self.world_size == 1 else f"{self.world_size} ranks"
        return f"{ranks}, mesh {mesh}, config {self.digest[:12] if self.digest else 'not given'}"


def mesh_of(model: nn.Module | None) -> dict[str, int]:
    """Names and sizes of the dimensions of the mesh that a model is sharded over; empty without one."""
    for parameter in () if model is None else model.parameters():
        if isinstance(parameter, DTensor):
            mesh = parameter.device_mesh
            names = mesh.mesh_dim_names or tuple(f"dim{i}" for i in range(mesh.ndim))
            return {name: mesh.size(i) for i, name in enumerate(names)}
    return {}


def check_tensors(
    wanted: Mapping[str, Any], metadata: Metadata, saved: Configuration, live: Configuration, whole: str | None = None
) -> None:
    """Raises ArchitectureMismatchError that names the first tensors that differ, and both configurations.

    `wanted`: live tensors and other values by their names in the checkpoint. `whole`: a prefix below which the
    checkpoint may have no other tensors.
    """
    stored = metadata.state_dict_metadata
    tensors = (name for name, item in stored.items() if isinstance(item, TensorStorageMetadata))
    unexpected = (name for name in tensors if whole is not None and name.startswith(whole) and name not in wanted)
    differences = []
    for name in [*wanted, *unexpected]:
        shapes, types = zip(_stored(stored, name), _live(wanted, name), strict=True)
        retyped = None not in types and types[0] != types[1]
        if retyped or shapes[0] != shapes[1]:
            theirs, ours = (f"{shape} {kind}" if retyped else shape for shape, kind in zip(shapes, types, strict=True))
            differences.append(f"{name.removeprefix('model.')}: {theirs} in the checkpoint, {ours} in the model")
    if not differences:
        return
    more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    raise ArchitectureMismatchError(
        f"checkpoint of another architecture: {'; '.join(differences[:SHOWN])}{more}. "
        f"Saved with {saved}; now {live}. Build the model (and optimizer) with the configuration that the checkpoint "
        "was saved with, or train in another root"
    )


def _stored(stored: Mapping[str, Any], name: str) -> tuple[str, str | None]:
    found = stored.get(name)
    if found is None:
        return "absent", None
    if isinstance(found, TensorStorageMetadata):
        return _shape(found.size), _type(found.properties.dtype)
    return "no tensor", None


def _live(wanted: Mapping[str, Any], name: str) -> tuple[str, str | None]:
    if name not in wanted:
        return "absent", None
    found = wanted[name]
    return (_shape(found.size()), _type(found.dtype)) if isinstance(found, torch.Tensor) else ("no tensor", None)


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_covered(state: Mapping[str, Any], items: Iterable[ReadItem]) -> None:
    """That the stored pieces leave no gap, where DCP would leave a tensor as it was.

    Raises CheckpointUnreadableError.
    """
    found: dict[str, int] = defaultdict(int)
    for item in items:
        if item.type == LoadItemType.TENSOR:
            found[item.dest_index.fqn] += item.lengths.numel()
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            size = (value.to_local() if isinstance(value, DTensor) else value).numel()
            if found[name] != size:
                raise CheckpointUnreadableError(f"{name}: {found[name]} of {size} elements are stored")
