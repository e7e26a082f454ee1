"""What each rank writes, agreed upon once: as long as no rank's state has changed its shape, the plan stands.

Planning is DCP's own (it drops what several ranks hold to one of them, and checks that the shards cover each tensor),
and costs two exchanges of every rank's whole plan. The plan depends on names, shapes, types and placements, so each
rank compares those with the last save's; one rank that finds a difference makes all of them plan again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.tensor import DTensor

from everstep.checkpoint.gang import Gang
from everstep.errors import InvalidOperationError

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Plan:
    """`metadata`, on rank 0: that of the whole save, without the places."""

    items: tuple[WriteItem, ...]
    metadata: Metadata | None

    def own_metadata(self) -> Metadata:
        """A copy to complete."""
        assert self.metadata is not None
        return copy.copy(self.metadata)


@dataclass(frozen=True)
class Outline:
    """A state dict as DCP sees it, and what of it a plan depends on."""

    planner: DefaultSavePlanner
    signature: tuple[Any, ...]


def outline(state: dict[str, Any], rank: int) -> Outline:
    planner = DefaultSavePlanner()
    flat, paths = flatten(state)
    if any(isinstance(value, ShardedTensor) for value in flat.values()):
        planner.set_up_planner(state, is_coordinator=rank == 0)
    else:  # the planner would find the same, and look at each item thrice
        planner.state_dict, planner.mappings, planner.is_coordinator = flat, paths, rank == 0
    signature = tuple((name, planner.mappings[name], *_shape(value)) for name, value in planner.state_dict.items())
    return Outline(planner, signature)


def flatten(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Path]]:
    """As `flatten_state_dict` of DCP does it: leaves by their names, and the keys on the way to each."""
    flat: dict[str, Any] = {}
    paths: dict[str, Path] = {}
    for path, item in _leaves(state, ()):
        name = ".".join(map(str, path))
        if name in flat:
            raise InvalidOperationError(f"two items of the state are named {name}: rename one of them")
        flat[name], paths[name] = item, path
    return flat, paths


def _leaves(state: Mapping[Any, Any], path: Path) -> Iterator[tuple[Path, Any]]:
    for key, item in state.items():
        part = str(key)
        if isinstance(item, torch.Tensor):
            yield (*path, part), item
        elif isinstance(item, Mapping):
            yield from _leaves(item, (*path, part))
        else:
            leaves, below = flatten_state_dict({part: item})
            for name, leaf in leaves.items():
                yield (*path, *below[name]), leaf


def _shape(value: Any) -> tuple[Any, ...]:
    if isinstance(value, DTensor):
        spec = value._spec
        order = getattr(spec, "shard_order", None)  # since torch 2.10
        return value.dtype, value.size(), value._local_tensor.size(), spec.mesh, spec.placements, order
    return (value.dtype, value.size(), value.layout) if isinstance(value, torch.Tensor) else ()


@dataclass(frozen=True)
class Known:
    """What the ranks have agreed on in a save, of which a plan depends. `apart`: what each rank has its own of."""

    signature: tuple[Any, ...]
    apart: frozenset[str]
    plan: Plan

    def fits(self, found: Outline) -> bool:
        """Whether the plan is good for this rank's state."""
        return found.signature == self.signature


class Plans:
    """The plan of the last save, and how many were made."""

    def __init__(self) -> None:
        self.made = 0
        self.known: Known | None = None

    def plan(self, found: Outline, apart: frozenset[str], gang: Gang, everyone_fits: bool) -> Plan:
        """Collective where a plan has to be made. `everyone_fits`: the same on all ranks."""
        known, self.known = self.known, None
        plan = known.plan if everyone_fits and known is not None else self._make(found.planner, gang)
        self.known = Known(found.signature, apart, plan)
        return plan

    def _make(self, planner: DefaultSavePlanner, gang: Gang) -> Plan:
        plan = _make(planner, gang)
        self.made += 1
        return plan


def _make(planner: DefaultSavePlanner, gang: Gang) -> Plan:
    planner.state_dict = {name: _detached(value) for name, value in planner.state_dict.items()}
    plans = gang.collect(planner.create_local_plan)
    metadata: list[Metadata] = []

    def globally() -> list[Any]:
        found, of_all = planner.create_global_plan(plans)
        metadata.append(of_all)
        return found

    mine = gang.hand_out(globally)
    items = tuple(planner.finish_plan(mine).items)
    return Plan(items, metadata[0] if metadata else None)


def _detached(value: Any) -> Any:
    """Stored tensors require no gradient, whatever was trained when they were saved."""
    return value.detach() if isinstance(value, torch.Tensor) and value.requires_grad else value
