"""What one rank has fetched, handed to the others that need it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def hand_round(data: torch.Tensor, members: Sequence[int], source: int, rank: int, group: Any) -> None:
    """Broadcast `data` (contiguous, on the CPU) from `source` to `members`, along a tree, by sends alone.

    Any set of ranks can do it without a process group of its own. All ranks must go through their broadcasts in one
    common order, each leaving out those that it is no member of.
    """
    turned = members.index(source)
    order = [*members[turned:], *members[:turned]]
    place = order.index(rank)
    step = 1
    while step < len(order) and not place & step:
        step <<= 1
    if place:
        dist.recv(data, group_src=order[place - step], group=group)
    step >>= 1
    while step:
        if place + step < len(order):
            dist.send(data, group_dst=order[place + step], group=group)
        step >>= 1
