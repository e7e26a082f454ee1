"""A tiny FSDP run in which each rank draws numbers of its own. Its storage can be told where to fail.

usage: torchrun tiny.py SCENARIO, with EVERSTEP_ROOT set. Saves every 2 of 8 steps.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from everstep import Checkpointer
from everstep.catalog import JobCatalog, Store, open_store
from everstep.errors import StorageUnavailableError

SCENARIO = sys.argv[1]
STEPS = 8


class Faulty:
    """Passes everything on, until the scenario's moment has come in the save of step 4."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._saving = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, body: bytes | bytearray | memoryview, sums: Sequence[int] = ()) -> int:
        self._saving = "step_000000000004-" in key
        if self._saving and key.endswith("/__1_0.distcp"):
            if SCENARIO == "shard-fails":
                raise StorageUnavailableError("the shard's bucket is on fire")
            if SCENARIO == "die-in-shard":
                os.kill(os.getpid(), signal.SIGKILL)
        return self._store.put(key, body, sums)

    def swap_register(self, key: str, body: bytes, token: str | None) -> str:
        if SCENARIO == "die-before-swap" and self._saving:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._store.swap_register(key, body, token)


class Data:
    def __init__(self) -> None:
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    width = 24 if SCENARIO == "wider" else 16
    model = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Dropout(0.3), torch.nn.Linear(width, 1))
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    data = Data()
    torch.manual_seed(10 + dist.get_rank())
    store: Any = Faulty(open_store(os.environ["EVERSTEP_ROOT"]))
    with Checkpointer.from_env(
        model=model, optimizer=optimizer, data=data, store=store, interval_steps=2
    ) as checkpointer:
        for step in checkpointer.steps(STEPS):
            inputs = torch.randn(8, 4) + data.position
            data.position += 1
            loss = model(inputs).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total = loss.detach().clone()
            dist.all_reduce(total)
            checkpointer.report(loss=total, samples=8)
            if dist.get_rank() == 0:
                line = {"step": step, "loss_hex": float(total).hex(), "samples": [data.position - 1, data.position]}
                print(json.dumps(line), flush=True)
            if SCENARIO == "fenced" and step == 5 and dist.get_rank() == 0:
                JobCatalog(checkpointer.store).claim()
    dist.destroy_process_group()


main()
