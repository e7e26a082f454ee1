"""The run with everstep. usage: everstep-run torchrun everstep_run.py, with EVERSTEP_ROOT and SURVIVAL_PROXY set.

SURVIVAL_RESUME: the committed step to train on from, instead of the latest. What is changed here is what would make a
test long: the least parts that S3 takes, short time-outs.
"""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist

from everstep import Checkpointer
from everstep.catalog.store.access import S3Access
from everstep.checkpoint.saving import shards, uploading
from everstep.checkpoint.saving.staging import StagedFile, Staging
from everstep.transfer import uploader
from tests.survival.state import EVERY, STEPS, Run, announce

READ_TIMEOUT = 3.0
PATIENCE = 4.0
_PARTS = """
from everstep.catalog.store import s3_objects
s3_objects.PART = s3_objects.WHOLE = 5 << 20
"""


class Announcing(Staging):
    copies = 0

    def finish(self) -> list[StagedFile]:
        Announcing.copies += 1
        announce("staging", rank=dist.get_rank(), save=Announcing.copies)
        return super().finish()


class Impatient(uploader.Uploader):
    def __init__(self, uri: str) -> None:
        super().__init__(uri, S3Access(read_timeout=READ_TIMEOUT), patience=PATIENCE)


def main() -> None:
    uploader._START = uploader._START.replace("\nmain(", f"{_PARTS}main(")
    setattr(shards, "Staging", Announcing)  # noqa: B010 - mypy knows that a class is none to assign to
    setattr(uploading, "Uploader", Impatient)  # noqa: B010
    defaults: Any = S3Access.__init__.__defaults__
    S3Access.__init__.__defaults__ = tuple(READ_TIMEOUT if value == 30.0 else value for value in defaults)
    dist.init_process_group("gloo")
    run = Run()
    chosen = os.environ.get("SURVIVAL_RESUME")
    with Checkpointer.from_env(
        model=run.model, optimizer=run.optimizer, interval_steps=EVERY, resume_step=int(chosen) if chosen else None
    ) as checkpointer:
        checkpointer.on_commit(lambda committed: run.say(saved=committed.step))
        found = checkpointer.load_latest()
        if found is not None:
            run.tell_restored(found.step)
        for step in checkpointer.steps(int(os.environ.get("SURVIVAL_STEPS", STEPS))):
            run.step(step)
    dist.destroy_process_group()


main()
