"""What each rank writes, agreed upon once: as long as no rank's state has changed its shape, the plan stands.

Planning is DCP's own (it drops what several ranks hold to one of them, and checks that the shards cover each tensor),
and costs two exchanges of every rank's whole plan. The plan depends on names, shapes, types and placements, so each
rank compares those with the last save's; one rank that finds a difference makes all of them plan again.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.tensor import DTensor

from everstep.checkpoint.gang import Gang


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
    planner.set_up_planner(state, is_coordinator=rank == 0)
    signature = tuple((name, planner.mappings[name], *_shape(value)) for name, value in planner.state_dict.items())
    return Outline(planner, signature)


def _shape(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, torch.Tensor):
        return ()
    plain = (value.dtype, value.size(), value.requires_grad, value.layout)
    return (*plain, value.device_mesh, value.placements) if isinstance(value, DTensor) else plain


class Plans:
    """The plan of the last save, and how many were made."""

    def __init__(self) -> None:
        self.made = 0
        self._signature: tuple[Any, ...] | None = None
        self._plan: Plan | None = None

    def fits(self, found: Outline) -> bool:
        """Whether the last plan is good for this rank's state."""
        return self._plan is not None and found.signature == self._signature

    def plan(self, found: Outline, gang: Gang, everyone_fits: bool) -> Plan:
        """Collective where a plan has to be made. `everyone_fits`: the same on all ranks."""
        if everyone_fits and self._plan is not None:
            return self._plan
        self._plan = None
        self._plan = _make(found.planner, gang)
        self._signature = found.signature
        self.made += 1
        return self._plan


def _make(planner: DefaultSavePlanner, gang: Gang) -> Plan:
    plans = gang.collect(planner.create_local_plan)
    metadata: list[Metadata] = []

    def globally() -> list[Any]:
        found, of_all = planner.create_global_plan(plans)
        metadata.append(of_all)
        return found

    mine = gang.hand_out(globally)
    items = tuple(planner.finish_plan(mine).items)
    return Plan(items, metadata[0] if metadata else None)
