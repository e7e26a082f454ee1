"""A small run in which everything changes: at optimizer steps, outside of them, and beside the model."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from everstep import Checkpointer
from everstep.checkpoint.environment import JobEnvironment
from everstep.checkpoint.saving.gate import Hold
from everstep.checkpoint.saving.staging import StagedFile, Staging


class Restless(torch.nn.Module):
    """Everything that changes outside of an optimizer step: running statistics, a counter, a weight set by hand."""

    def __init__(self, width: int = 300) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, width)
        self.norm = torch.nn.BatchNorm1d(width)
        self.last = torch.nn.Linear(width, 1)
        self.target = torch.nn.Parameter(torch.zeros(width), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.first(inputs))
        with torch.no_grad():
            self.target.lerp_(hidden.mean(0), 0.5)
        out: torch.Tensor = self.last(torch.nn.functional.dropout(hidden - self.target, 0.1))
        return out


class Run:
    def __init__(self, width: int = 300) -> None:
        torch.manual_seed(0)
        self.model = Restless(width)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.01)
        self.average = torch.optim.swa_utils.AveragedModel(self.model, use_buffers=True)

    def step(self) -> None:
        self.model(torch.randn(8, 4)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.model)

    def live(self) -> dict[str, torch.Tensor]:
        """By the names under which they are saved."""
        found = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        found |= {f"everstep.objects.average/{name}": value for name, value in self.average.state_dict().items()}
        for (name, _), state in zip(
            ((n, p) for n, p in self.model.named_parameters() if p.requires_grad),
            self.optimizer.state.values(),
            strict=True,
        ):
            found |= {f"optimizer.state.{name}.{key}": value for key, value in state.items()}
        return {name: value.detach().clone() for name, value in found.items()}

    def checkpointer(self, root: Path | str, **options: Any) -> Checkpointer:
        options.setdefault("environment", JobEnvironment(root=str(root), heartbeat_seconds=60))
        return Checkpointer(model=self.model, optimizer=self.optimizer, average=self.average, **options)


def copy_when(monkeypatch: pytest.MonkeyPatch, moment: threading.Event) -> None:
    """From now on a save beside training is copied when `moment` comes, and each of them waits for one of its own."""
    finish = Staging.finish

    def late(staging: Staging) -> list[StagedFile]:
        if threading.current_thread() is not threading.main_thread():
            assert moment.wait(60)
            moment.clear()
        return finish(staging)

    monkeypatch.setattr(Staging, "finish", late)


def copy_at_the_last_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy begins only when the next optimizer step waits for it: forward and backward are over by then."""
    arrived = threading.Event()
    wait = Hold.wait

    def waits(hold: Hold) -> None:
        if not hold._opened.is_set():  # a second optimizer, or a step without a save, finds it open
            arrived.set()
        wait(hold)

    monkeypatch.setattr(Hold, "wait", waits)
    copy_when(monkeypatch, arrived)
