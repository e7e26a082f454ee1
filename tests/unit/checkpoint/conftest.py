"""Small single-process jobs on a POSIX root."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from everstep import Checkpointer
from everstep.catalog import JobCatalog, open_store
from everstep.checkpoint.environment import JobEnvironment


class Counter:
    """Data whose state is one number."""

    def __init__(self) -> None:
        self.position = 0

    def __next__(self) -> torch.Tensor:
        self.position += 1
        return torch.full((2, 4), float(self.position))

    def get_state(self) -> dict[str, int]:
        return {"position": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Job:
    """A model with its optimizer, scheduler and data, as a fresh process would make them."""

    def __init__(self, width: int = 8, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Dropout(0.2), torch.nn.Linear(width, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=3, gamma=0.5)
        self.data = Counter()

    def step(self) -> float:
        loss: torch.Tensor = self.model(next(self.data)).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def checkpointer(self, root: Path, script: bool = False, **options: Any) -> Checkpointer:
        options.setdefault("environment", JobEnvironment(root=str(root), heartbeat_seconds=60))
        objects = {name: getattr(self, name) for name in ("model", "optimizer", "scheduler", "data")}
        make = Checkpointer.from_env if script else Checkpointer
        return make(**{**objects, **options})

    def run(self, root: Path, total: int, every: int = 2, stop_after: int | None = None, **options: Any) -> list[float]:
        """Train to `total`, or leave the loop after `stop_after` as a killed process would: without a last save."""
        losses = []
        with self.checkpointer(root, interval_steps=every, **options) as checkpointer:
            for step in checkpointer.steps(total):
                losses.append(self.step())
                checkpointer.report(loss=losses[-1], samples=2)
                if step == stop_after:
                    break
        return losses


@pytest.fixture
def job() -> Callable[..., Job]:
    return Job


def steps_of(root: Path) -> list[int]:
    catalog = JobCatalog(open_store(str(root))).require()
    return [entry.step for entry in catalog.live()]


def flip(path: Path, offset: int | None = None) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2 if offset is None else offset] ^= 1
    path.write_bytes(body)


def folder_of(root: Path, step: int) -> Path:
    catalog = JobCatalog(open_store(str(root))).require()
    return root / next(entry.location for entry in catalog.live() if entry.step == step)
