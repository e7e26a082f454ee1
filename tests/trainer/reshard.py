"""Checkpoints of one layout loaded into another, checked by the ranks themselves.

usage: torchrun --nproc-per-node=4 reshard.py FOLDER

One launch plays gangs of one, two and four ranks, one after the other, each with a process group of its own. Rank 0
prints a line of JSON for each restore.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from everstep import Checkpointer
from everstep.catalog import JobCatalog, Store, open_store
from everstep.catalog.manifest import BLOCK
from everstep.checkpoint.restoring import headstart
from everstep.errors import StorageRefusedError

FOLDER = Path(sys.argv[1])
RANK = int(os.environ["RANK"])


class Net(torch.nn.Module):
    """Matrices over several blocks of checksums, rows that no number of ranks divides, two types."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(301, 600)
        self.up = torch.nn.Linear(600, 1000)
        self.down = torch.nn.Linear(1000, 600)
        self.norm = torch.nn.LayerNorm(600)
        self.narrow = torch.nn.Linear(600, 7).bfloat16()
        self.seen: torch.Tensor
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.down(self.up(self.embedding(tokens)).relu()))
        loss: torch.Tensor = hidden.square().mean() + self.narrow(hidden.bfloat16()).float().square().mean()
        return loss


def shard(model: Net, mesh: DeviceMesh | None) -> None:
    for module in (model.up, model.narrow, model):  # a unit has one type
        fully_shard(module, mesh=mesh)


def plain(model: Net) -> None:
    pass


def fsdp(model: Net) -> None:
    shard(model, None)


def hsdp(model: Net) -> None:
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("replicate", "shard"))
    shard(model, mesh)


def tensor_parallel(model: Net) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp", "tp"))
    parallelize_module(model, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    shard(model, mesh["dp"])


class Counting:
    """A store that counts the bytes of shards that it is asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.fetched = 0
        self.requests = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read_into(self, key: str, start: int, into: memoryview) -> int:
        if key.endswith(".distcp"):
            self.fetched += len(into)
            self.requests += 1
        return self._store.read_into(key, start, into)


class Run:
    def __init__(self, layout: Callable[[Net], None], seed: int) -> None:
        torch.manual_seed(seed)
        self.model = Net()
        layout(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, foreach=False)
        self.average = {name: value.detach().clone() for name, value in self.model.named_parameters()}

    def state_dict(self) -> dict[str, Any]:
        return self.average

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average = state

    def train(self) -> None:
        for step in range(2):
            torch.manual_seed(step)
            self.model(torch.randint(301, (4, 9))).backward()
            for parameter in self.model.parameters():  # replicas must not drift apart
                if not isinstance(parameter, DTensor) and parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
            self.optimizer.step()
            self.optimizer.zero_grad()
            for name, value in self.model.named_parameters():
                self.average[name].lerp_(value.detach(), 0.1)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything, whole, by name."""
        state = get_optimizer_state_dict(self.model, self.optimizer)["state"]
        found: dict[str, Any] = {f"model.{name}": value for name, value in get_model_state_dict(self.model).items()}
        found |= {f"{name}.{key}": value for name, values in state.items() for key, value in values.items()}  # type: ignore[union-attr]
        found |= {f"average.{name}": value for name, value in self.average.items()}
        return {
            name: (each.full_tensor() if isinstance(each, DTensor) else each).clone() for name, each in found.items()
        }

    def checkpointer(self, root: str, kind: type[Counting] = Counting) -> tuple[Checkpointer, Counting]:
        store: Any = kind(open_store(root))
        return Checkpointer(model=self.model, optimizer=self.optimizer, average=self, store=store), store


@contextmanager
def gang(name: str, ranks: int) -> Iterator[bool]:
    """A process group of the first ranks; says whether this one is in it."""
    if ranks <= RANK:
        yield False
        return
    dist.init_process_group(
        "gloo", f"file://{FOLDER}/{name}", rank=RANK, world_size=ranks, timeout=timedelta(seconds=120)
    )
    yield True
    dist.barrier()
    dist.destroy_process_group()


def save(layout: Callable[[Net], None], ranks: int) -> None:
    name = f"{layout.__name__}-{ranks}"
    with gang(f"save-{name}", ranks) as joined:
        if joined:
            run = Run(layout, seed=1)
            run.train()
            checkpointer, _ = run.checkpointer(str(FOLDER / "roots" / name))
            checkpointer.begin(2)
            checkpointer.save_state()
            checkpointer.commit()
            checkpointer.close()
            wanted = run.tensors()
            if RANK == 0:
                torch.save(wanted, FOLDER / f"{name}.pt")


def restore(source: Callable[[Net], None], saved_by: int, layout: Callable[[Net], None], ranks: int) -> None:
    name = f"{source.__name__}-{saved_by}"
    with gang(f"load-{name}-{layout.__name__}-{ranks}", ranks) as joined:
        if not joined:
            return
        run = Run(layout, seed=2)
        checkpointer, store = run.checkpointer(str(FOLDER / "roots" / name))
        checkpointer.load(2)
        checkpointer.close()
        found, wanted = run.tensors(), torch.load(FOLDER / f"{name}.pt", weights_only=True)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert found[key].dtype == value.dtype, key
            assert torch.equal(found[key], value), key
        counts: list[Any] = [None] * ranks
        dist.all_gather_object(counts, store.fetched)
        if RANK == 0:
            needed = sum(value.nbytes for value in wanted.values())
            line = {"from": name, "to": f"{layout.__name__}-{ranks}", "needed": needed, "fetched": counts}
            print(json.dumps(line), flush=True)


class Refusing(Counting):
    """A store of which one rank is refused the shards."""

    def read_into(self, key: str, start: int, into: memoryview) -> int:
        if key.endswith("_0.distcp") and start > 0 and dist.get_rank() == dist.get_world_size() - 1:
            raise StorageRefusedError("not for you")
        return self._store.read_into(key, start, into)


def failures(ranks: int) -> None:
    """What one rank alone meets ends the restore on all of them, and nobody waits for anything."""
    root = FOLDER / "roots" / "failures"
    with gang("failures", ranks) as joined:
        if not joined:
            return
        run = Run(hsdp, seed=1)
        checkpointer, _ = run.checkpointer(str(root))
        wanted: list[dict[str, torch.Tensor]] = []
        for step in (1, 2):
            run.train()
            checkpointer.begin(step)
            checkpointer.save_state()
            checkpointer.commit()
            wanted.append(run.tensors())
        checkpointer.close()

        with pytest.raises(StorageRefusedError, match=f"rank {ranks - 1}: not for you"):
            run.checkpointer(str(root), Refusing)[0].load(2)

        if RANK == 0:
            [shard] = root.glob("checkpoints/step_000000000002-*/__1_0.distcp")
            body = bytearray(shard.read_bytes())
            body[-len(body) // 3] ^= 1
            shard.write_bytes(body)
        dist.barrier()
        again = Run(hsdp, seed=2)
        checkpointer, _ = again.checkpointer(str(root))
        found = checkpointer.load_latest()
        assert found is not None
        assert found.step == 1
        assert all(torch.equal(value, wanted[0][name]) for name, value in again.tensors().items())
        checkpointer.close()
        states = {entry.step: entry.state for entry in JobCatalog(open_store(str(root))).require().checkpoints}
        assert states == {1: "live", 2: "quarantined"}
        if RANK == 0:
            print("failures met by all", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    headstart.FEW_STEPS = (BLOCK, BLOCK, 2 * BLOCK)  # of so little nothing would be fetched ahead for others
    for layout, ranks in ((fsdp, 2), (plain, 2), (fsdp, 1), (hsdp, 4), (tensor_parallel, 4)):
        save(layout, ranks)
    for layout, ranks in ((fsdp, 1), (fsdp, 2), (fsdp, 4), (hsdp, 4), (tensor_parallel, 4), (plain, 2)):
        restore(fsdp, 2, layout, ranks)
    restore(fsdp, 1, fsdp, 2)
    restore(plain, 2, fsdp, 4)
    restore(hsdp, 4, hsdp, 4)
    restore(hsdp, 4, fsdp, 2)
    restore(tensor_parallel, 4, fsdp, 2)
    restore(tensor_parallel, 4, fsdp, 1)
    restore(tensor_parallel, 4, tensor_parallel, 4)
    failures(4)


main()
