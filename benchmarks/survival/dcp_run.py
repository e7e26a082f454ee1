"""The run with torch.distributed.checkpoint alone, on s3torchconnector's writer and reader, as their documents say.

usage: torchrun dcp_run.py, with SURVIVAL_ROOT, SURVIVAL_ASYNC (0 or 1) and SURVIVAL_PROXY set. A folder a step;
the latest is the one with the greatest step that has a `.metadata`, which is written last. SURVIVAL_RESUME: the step to
load instead. SURVIVAL_KEEP: how many of the newest steps are kept.
"""

from __future__ import annotations

import os
from concurrent.futures import Future
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.distributed.checkpoint.stateful import Stateful

from benchmarks.survival.s3_steps import S3Steps
from tests.survival.state import EVERY, STEPS, Run, announce


class App(Stateful):
    """Model and optimizer, as torch's own recipe for DCP wraps them."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.run.model, self.run.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        model, optimizer = state["model"], state["optimizer"]
        set_state_dict(self.run.model, self.run.optimizer, model_state_dict=model, optim_state_dict=optimizer)


class Saving:
    """One save at a time; in the background where `SURVIVAL_ASYNC` says so."""

    def __init__(self, run: Run, steps: S3Steps) -> None:
        self._run = run
        self._steps = steps
        self._group: Any = dist.new_group(backend="gloo") if os.environ["SURVIVAL_ASYNC"] == "1" else None
        self._under_way: tuple[int, Future[Any]] | None = None
        self._count = 0

    def save(self, step: int) -> None:
        self.finish()
        self._count += 1
        announce("staging", rank=self._run.rank, save=self._count)
        state, writer = {"app": App(self._run)}, self._steps.writer(step)
        if self._group is None:
            save(state, storage_writer=writer)
            self._stands(step)
        else:
            found: Any = async_save(state, storage_writer=writer, process_group=self._group)
            self._under_way = (step, found)

    def finish(self) -> None:
        if self._under_way is not None:
            (step, future), self._under_way = self._under_way, None
            future.result()
            self._stands(step)

    def _stands(self, step: int) -> None:
        self._run.say(saved=step)
        if self._run.rank == 0:
            self._steps.purge(int(os.environ.get("SURVIVAL_KEEP", "100")))


def main() -> None:
    dist.init_process_group("gloo")
    run, steps = Run(), S3Steps(os.environ["SURVIVAL_ROOT"])
    chosen = os.environ.get("SURVIVAL_RESUME")
    box = [int(chosen) if chosen else steps.latest() if run.rank == 0 else 0]
    dist.broadcast_object_list(box, src=0)
    if box[0]:
        load({"app": App(run)}, storage_reader=steps.reader(box[0]))
        run.tell_restored(box[0])
    saving = Saving(run, steps)
    for step in range(box[0] + 1, int(os.environ.get("SURVIVAL_STEPS", STEPS)) + 1):
        run.step(step)
        if step % EVERY == 0:
            saving.save(step)
    saving.finish()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
