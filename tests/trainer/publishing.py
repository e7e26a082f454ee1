"""A gang that publishes its weights each step, and its consumer. usage: torchrun publishing.py train SCENARIO, with
EVERSTEP_ROOT; or python publishing.py watch URI SECONDS, which says that it watches, then prints a
line for each set that it has loaded.

All weights of a step have the value of that step, so that a set of two steps would show. Scenario die-in-set: rank 1
dies in the middle of storing its file of step 5.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from everstep import Checkpointer
from everstep.catalog import open_store
from everstep.weights import WeightsWatcher, publisher

STEPS = 8


def model() -> torch.nn.Module:
    """Layers of several sizes, one with fewer rows than ranks, a buffer, two types."""
    layers = [torch.nn.Linear(8, 8) for _ in range(4)]
    return torch.nn.Sequential(*layers, torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1).bfloat16())


class Dying:
    """A store that kills its process half-way through a file."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, body: Any, sums: Any = ()) -> int:
        if key.startswith("weights/step_000000000005-") and "/model-00002-of" in key:
            self._store.put(key, bytes(body)[: len(body) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return int(self._store.put(key, body, sums))


def train(scenario: str) -> None:
    publisher.SMALL = 1  # or a model as small as this one would be one file
    dist.init_process_group("gloo")
    net = model().requires_grad_(False)
    for layer in list(net)[:4]:  # type: ignore[call-overload]
        fully_shard(layer)
    fully_shard(net)
    store: Any = open_store(os.environ["EVERSTEP_ROOT"])
    if scenario == "die-in-set":
        store = Dying(store)
    with Checkpointer.from_env(model=net, store=store, interval_steps=4, weights_steps=1) as checkpointer:
        for step in checkpointer.steps(STEPS):
            for value in (*net.parameters(), *net.buffers()):
                (value.to_local() if hasattr(value, "to_local") else value).fill_(step)
            dist.barrier()
    dist.destroy_process_group()


def watch(uri: str, seconds: float) -> None:
    plain = model()
    print("watching", flush=True)
    for step, weights in WeightsWatcher(uri, poll_seconds=0.05).watch(seconds):
        weights.load_into(plain)
        values = {float(value.min()) for value in plain.state_dict().values()}
        values |= {float(value.max()) for value in plain.state_dict().values()}
        print(json.dumps({"step": step, "epoch": weights.epoch, "values": sorted(values)}), flush=True)
        if step == STEPS:
            return


if sys.argv[1] == "train":
    train(sys.argv[2])
else:
    watch(sys.argv[2], float(sys.argv[3]))
