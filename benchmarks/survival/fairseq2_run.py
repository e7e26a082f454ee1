"""The run with fairseq2's checkpoint manager on S3, through its own file system for it, as its trainer calls it.

usage: torchrun fairseq2_run.py, in an environment with fairseq2 and s3fs, with SURVIVAL_ROOT and SURVIVAL_PROXY set.
Saves are asynchronous. The latest is what `maybe_get_last_step_number` says. SURVIVAL_RESUME: the step to load instead.
SURVIVAL_KEEP: how many of the newest steps are kept.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fairseq2.checkpoint.manager import StandardCheckpointManager
from fairseq2.file_system import FSspecFileSystem
from fairseq2.gang import ProcessGroupGang, create_fsdp_gangs, create_parallel_gangs
from fairseq2.io import _TorchTensorFileDumper, _TorchTensorFileLoader
from fairseq2.utils.threading import _StandardThreadPool
from s3fs import S3FileSystem

from tests.survival.state import EVERY, STEPS, Run, announce


class Shards:
    """This rank's part of the model and of its optimizer, as a dictionary of plain tensors."""

    def __init__(self, run: Run, optimizer: bool) -> None:
        self._run = run
        self._optimizer = optimizer

    def _live(self) -> dict[str, torch.Tensor]:
        named: list[tuple[str, Any]] = list(self._run.model.named_parameters())
        if not self._optimizer:
            return {name: value.to_local() for name, value in named}
        found = {}
        for name, value in named:
            for key, each in self._run.optimizer.state.get(value, {}).items():
                found[f"{name}.{key}"] = each.to_local() if hasattr(each, "to_local") else each
        return found

    def state_dict(self) -> dict[str, object]:
        return {name: value.detach() for name, value in self._live().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._optimizer and not self._run.optimizer.state:  # a step makes its tensors
            for each in self._run.model.parameters():
                each.grad = torch.zeros_like(each) if each.requires_grad else None
            self._run.optimizer.step()
            self._run.optimizer.zero_grad()
        for name, value in self._live().items():
            value.copy_(state[name])


class Position:
    """What else a trainer keeps: where it is."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, object]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


def make_manager() -> Any:
    gangs: Any = create_fsdp_gangs(
        create_parallel_gangs(ProcessGroupGang.create_default_process_group(torch.device("cpu")))
    )
    files = FSspecFileSystem(S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"]), "s3://")
    loader, dumper = _TorchTensorFileLoader(files), _TorchTensorFileDumper(files)
    root = Path(os.environ["SURVIVAL_ROOT"])
    return StandardCheckpointManager(root, gangs, files, loader, dumper, _StandardThreadPool(4), checkpoint_dir=root)


def main() -> None:
    manager = make_manager()
    run = Run()
    state = (Position(), Shards(run, optimizer=False), Shards(run, optimizer=True), Position())
    chosen = os.environ.get("SURVIVAL_RESUME")
    first = int(chosen) if chosen else manager.maybe_get_last_step_number(exclude_model_only=True) or 0
    if first:
        loads = ("trainer", "optimizer", "model", "data_reader")
        parts = (state[0], state[2], state[1], state[3])
        for name, part in zip(loads, parts, strict=True):
            getattr(manager, f"load_{name}_state")(first, part)
        run.tell_restored(first)
    saves = 0
    keep = int(os.environ.get("SURVIVAL_KEEP", "0"))

    def saved(step: int, blocking: bool) -> None:
        run.say(saved=step)
        for stale in manager.get_stale_step_numbers(keep or None, None, None):
            manager.delete_checkpoint(stale)

    for step in range(first + 1, int(os.environ.get("SURVIVAL_STEPS", STEPS)) + 1):
        run.step(step)
        state[0].step = state[3].step = step
        manager.maybe_complete_save_operation()
        if step % EVERY == 0:
            saves += 1
            announce("staging", rank=run.rank, save=saves)
            manager.save_checkpoint(step, *state, saved_callback=saved)
    manager.maybe_complete_save_operation(blocking=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
