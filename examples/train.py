"""The least that a training script needs: `torchrun --nproc-per-node 2 examples/train.py`, or `args` of a TrainingJob.

Without an operator it keeps its checkpoints in ./checkpoints; kill it and start it again, and it goes on where it was.
`python examples/train.py` does the same in one process.
"""

import os

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from everstep import Checkpointer


class Data:
    """Samples by global position: the state is one number, the same on any number of ranks."""

    def __init__(self, rank: int, ranks: int, batch: int = 32) -> None:
        self.rank, self.ranks, self.batch, self.position = rank, ranks, batch, 0

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.position + self.rank)
        self.position += self.ranks
        inputs = torch.randn(self.batch, 16, generator=generator)
        return inputs, inputs.sin().sum(dim=1, keepdim=True)

    def get_state(self) -> dict[str, int]:
        return {"position": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def main() -> None:
    if "RANK" not in os.environ:  # plain python: a gang of one
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 1)).to(device)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1000)
    data = Data(dist.get_rank(), dist.get_world_size())
    alone = {} if "EVERSTEP_ROOT" in os.environ else {"root": "checkpoints", "interval_steps": 100}

    with Checkpointer.from_env(
        model=model, optimizer=optimizer, scheduler=scheduler, data=data, **alone
    ) as checkpointer:
        for _step in checkpointer.steps(1000):
            inputs, targets = (tensor.to(device) for tensor in next(data))
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            checkpointer.report(loss=loss.detach(), samples=len(inputs))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
