"""The run that every engine saves: a sharded model with dropout, its optimizer, and a stamp in every rank's shard.

The stamp tells which save a byte is of: a checkpoint of pieces of two saves shows it, whatever its metadata says.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

WIDTH = 1024
STAMPS = 4096
STEPS = 8
EVERY = 2
STARTS = 1000
"""A stamp is step * STARTS + the number of the start: as float32 it is exact."""


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(WIDTH, WIDTH)
        self.last = torch.nn.Linear(WIDTH, 1)
        self.stamp = torch.nn.Parameter(torch.zeros(STAMPS), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(torch.nn.functional.dropout(self.first(inputs), 0.1, self.training))
        return out


class Run:
    """Needs a process group. Each start has a number of its own, which all ranks know."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        torch.manual_seed(0)
        self.model = Net()
        fully_shard(self.model)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.001)
        self.start = self._number()
        torch.manual_seed(10 + self.rank)
        announce("start", rank=self.rank, pid=os.getpid())

    def _number(self) -> int:
        box = [0]
        if self.rank == 0:
            path = Path("starts")
            box[0] = len(path.read_text()) if path.exists() else 0
            with path.open("a") as file:
                file.write("x")
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def step(self, number: int) -> None:
        """One step of training, its stamp, and a line about it from rank 0."""
        loss = self.model(torch.randn(4, WIDTH)).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self._stamp().fill_(number * STARTS + self.start)
        total = loss.detach().clone()
        dist.all_reduce(total)
        self.say(step=number, loss=float(total).hex())

    def tell_restored(self, step: int) -> None:
        """What came back, of all ranks."""
        stamp = self._stamp()
        mine = sorted({int(value) for value in stamp.tolist()})
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, mine)
        self.say(restored=step, stamps=sorted({value for each in found for value in each}))

    def say(self, **values: Any) -> None:
        if self.rank == 0:
            print(json.dumps({**values, "at": time.time()}), flush=True)

    def _stamp(self) -> torch.Tensor:
        sharded: Any = self.model.stamp
        local: torch.Tensor = sharded.to_local()
        return local


def announce(phase: str, **values: Any) -> None:
    """Tell the proxy before storage where this rank stands; it answers when the rank may go on."""
    query = "&".join(f"{name}={value}" for name, value in values.items())
    with urllib.request.urlopen(f"{os.environ['SURVIVAL_PROXY']}/-/{phase}?{query}", timeout=60) as answer:
        answer.read()
