"""A small FSDP run with dropout on data with a position; each step prints which samples all ranks together saw.

usage: torchrun samples.py stream|torchdata STEPS WORKERS, with EVERSTEP_ROOT set. Saves each 5 steps.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DistributedSampler

from everstep import Checkpointer
from everstep.data import Lines, PerRank, StreamBatches

KIND, STEPS, WORKERS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
BATCH = 8


def decode(line: bytes) -> dict[str, torch.Tensor]:
    """What an augmentation does: a sample is its record and some noise."""
    number = int(line)
    return {"number": torch.tensor(number), "inputs": torch.full((4,), number / 50) + torch.randn(4) / 10}


def numbers(rank: int, world_size: int) -> Any:
    if KIND == "stream":
        shards = []
        for shard in range(5):
            shards.append(f"shard-{shard}.txt")
            if rank == 0:
                with open(shards[-1], "w") as file:
                    file.writelines(f"{shard * 100 + line}\n" for line in range(7 + shard))
        dist.barrier()
        return StreamBatches(Lines(shards), BATCH, decode=decode, interleave=2, window=6, workers=WORKERS)
    from torchdata.stateful_dataloader import StatefulDataLoader

    dataset = [decode(str(number).encode()) for number in range(50)]
    sampler: Any = DistributedSampler(dataset, world_size, rank)  # type: ignore[arg-type]
    return PerRank(StatefulDataLoader(dataset, batch_size=BATCH // world_size, sampler=sampler, num_workers=WORKERS))


def main() -> None:
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 1))
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    data = numbers(rank, world_size)
    torch.manual_seed(10 + rank)
    with Checkpointer.from_env(model=model, optimizer=optimizer, data=data, interval_steps=5) as checkpointer:
        for step in checkpointer.steps(STEPS):
            batch = next(data)
            loss = model(batch["inputs"]).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total = loss.detach().clone()
            dist.all_reduce(total)
            checkpointer.report(loss=total, samples=len(batch["number"]))
            seen: list[Any] = [None] * world_size
            dist.all_gather_object(seen, batch["number"].tolist())
            if rank == 0:
                samples = [number for part in seen for number in part]
                line = {"step": step, "loss_hex": float(total).hex(), "samples": samples}
                sys.stdout.write(json.dumps(line) + "\n")
    dist.destroy_process_group()


main()
