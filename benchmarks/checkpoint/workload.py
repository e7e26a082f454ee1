"""What is trained while checkpoints are written: a language model of GPT-2's shape under FSDP2, on the CPU.

Its state with AdamW is at least the size asked for: some six hundred items, a quarter of them the optimizer's step
counters, as in any real run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

LAYERS = 12
VOCABULARY = 8192
TOKENS = 16
"""A rank's a step."""
_OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True)
_BYTES = 12
"""A parameter and AdamW's two moments of it, in float32."""


def width(size: int) -> int:
    """The least multiple of 64 with which the state has `size` bytes."""
    parameters = size / _BYTES  # 12 w² in each layer, 2 V w in the embedding and the head
    a, b = 12 * LAYERS, 2 * VOCABULARY
    return math.ceil((-b + math.sqrt(b * b + 4 * a * parameters)) / (2 * a) / 64) * 64


def _model(size: int) -> nn.Module:
    wide = width(size)
    layers = [nn.TransformerEncoderLayer(wide, wide // 64, 4 * wide, batch_first=True) for _ in range(LAYERS)]
    return nn.Sequential(nn.Embedding(VOCABULARY, wide), *layers, nn.Linear(wide, VOCABULARY, bias=False))


@dataclass(frozen=True)
class Workload:
    model: nn.Module
    optimizer: torch.optim.Optimizer

    @classmethod
    def build(cls, size: int, world: int) -> Workload:
        """Collective: sharded over all ranks, with AdamW's state in place."""
        with torch.device("meta"):
            model = _model(size)
        mesh = init_device_mesh("cpu", (world,))
        for layer in model.children():
            if isinstance(layer, nn.TransformerEncoderLayer):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        model.to_empty(device="cpu")
        torch.manual_seed(dist.get_rank())
        with torch.no_grad():
            for parameter in model.parameters():
                _local(parameter).normal_(std=0.02)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        return cls(model, optimizer)

    def backward(self) -> None:
        tokens = torch.randint(VOCABULARY, (1, TOKENS + 1))
        found = self.model(tokens[:, :-1])
        nn.functional.cross_entropy(found.flatten(0, 1), tokens[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]

    def state(self) -> dict[str, Any]:
        """As DCP takes it."""
        optimizer = get_optimizer_state_dict(self.model, self.optimizer, options=_OPTIONS)
        return {"model": get_model_state_dict(self.model), "optimizer": optimizer}

    def take(self, state: dict[str, Any]) -> None:
        """What DCP has loaded."""
        set_model_state_dict(self.model, state["model"])
        set_optimizer_state_dict(self.model, self.optimizer, state["optimizer"], options=_OPTIONS)

    def tensors(self) -> list[torch.Tensor]:
        """This rank's part of the state."""
        state = [value for each in self.optimizer.state.values() for value in each.values()]
        return [_local(tensor) for tensor in (*self.model.parameters(), *state)]

    def fingerprint(self) -> tuple[int, int]:
        """A sum over the bits of this rank's part, which does not depend on how the whole is divided, and its bytes."""
        tensors = [tensor.detach() for tensor in self.tensors() if tensor.dim()]
        total = sum(int(tensor.view(torch.int32).sum()) for tensor in tensors)
        return total, sum(tensor.nbytes for tensor in tensors)

    def spoil(self) -> None:
        """So that only what is restored can be right."""
        with torch.no_grad():
            for tensor in self.tensors():
                tensor.fill_(0.5)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
