"""Process group, device and determinism of one rank."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from everstep.train.config import TrainConfig


@dataclass(frozen=True)
class Ranks:
    rank: int
    world_size: int
    device: torch.device
    mesh: DeviceMesh
    half: bool
    """Whether this device computes in bf16."""

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over all ranks, the same bits on each."""
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world_size


def start(config: TrainConfig) -> Ranks:
    """Join the process group that torchrun describes, or be the only process."""
    settle(config)
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    world = dist.get_world_size()
    half = config.precision == "bf16" or (config.precision == "auto" and cuda and torch.cuda.is_bf16_supported())
    mesh = init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    return Ranks(dist.get_rank(), world, device, mesh, half)


def settle(config: TrainConfig) -> None:
    if not config.deterministic:
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.set_num_threads(config.threads)
