"""A tiny FSDP run in which each rank draws numbers of its own. Its storage can be told where to fail.

usage: torchrun tiny.py SCENARIO, with EVERSTEP_ROOT set. Saves every 2 of 8 steps; in scenarios of the local tier every
4, and each one to the node, of which there is one for each rank.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from everstep import Checkpointer
from everstep.catalog import JobCatalog, Store, open_store
from everstep.checkpoint.local import folder
from everstep.checkpoint.local.folder import Part, Slot
from everstep.checkpoint.saving import shards
from everstep.checkpoint.saving.staging import StagedFile, Staging
from everstep.errors import StorageUnavailableError

SCENARIO = sys.argv[1]
STEPS = 8
LOCAL = SCENARIO.startswith("local-")
FIRST = not Path("died").exists()


def die() -> None:
    """Once: the worker group that is started in its place lives."""
    with contextlib.suppress(FileExistsError):
        Path("died").touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)


class Dying(Staging):
    """Rank 1 dies in the copy of step 4, before the optimizer's next step, which waits for it."""

    copies = 0

    def finish(self) -> list[StagedFile]:
        Dying.copies += 1
        if Dying.copies == 2 and dist.get_rank() == 1:
            die()
        return super().finish()


def fail_on_the_node(checkpointer: Checkpointer) -> None:
    """Rank 1 dies in step 7, or once its part of step 5 is copied and not finished."""
    found, saves = checkpointer._session.local, checkpointer._local._saves
    assert found is not None
    assert saves is not None
    if SCENARIO in ("local-loss", "local-damage") and saves._flight is not None:
        saves._flight.wait()  # it is there, with its copy, and then it is gone
    if SCENARIO == "local-loss":
        shutil.rmtree(found.root)
    if SCENARIO == "local-damage":
        for shard in found.path.glob("*/rank-1/*/__1_0.distcp"):
            body = bytearray(shard.read_bytes())
            body[5000] ^= 1
            shard.write_bytes(body)
    die()


class Unfinished(Slot):
    def finish(self, part: Part, metadata: bytes) -> None:
        if part.step == 5 and part.rank == 1:
            die()
        super().finish(part, metadata)


class Faulty:
    """Passes everything on, until the scenario's moment has come in the save of step 4."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._saving = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, body: bytes | bytearray | memoryview, sums: Sequence[int] = ()) -> int:
        if key.startswith("checkpoints/"):  # heartbeats are written beside
            self._saving = "step_000000000004-" in key
        mine = self._saving and key.endswith("/__1_0.distcp")
        if mine and SCENARIO == "shard-fails":
            raise StorageUnavailableError("the shard's bucket is on fire")
        if mine and SCENARIO == "die-in-shard":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._saving and key.endswith("/.metadata") and SCENARIO == "die-before-metadata":
            die()
        retries = self._store.put(key, body, sums)
        if mine and SCENARIO == "die-after-shard":
            die()
        return retries

    def swap_register(self, key: str, body: bytes, token: str | None) -> str:
        if SCENARIO == "die-before-swap" and self._saving:
            os.kill(os.getpid(), signal.SIGKILL)
        swapped = self._store.swap_register(key, body, token)
        if SCENARIO == "die-after-swap" and self._saving:
            die()
        return swapped


class Data:
    def __init__(self) -> None:
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 1))
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    data = Data()
    torch.manual_seed(10 + dist.get_rank())
    uploading = SCENARIO == "uploader-dies"
    store: Any = None if uploading else Faulty(open_store(os.environ["EVERSTEP_ROOT"]))
    if SCENARIO == "die-in-copy":
        setattr(shards, "Staging", Dying)  # noqa: B010 - mypy knows that a class is none to assign to
    options: dict[str, Any] = {"interval_steps": 2}
    if LOCAL:
        home = dist.get_rank() if FIRST or SCENARIO != "local-exchange" else 1 - dist.get_rank()
        options = {"interval_steps": 4, "local": f"node-{home % int(os.environ.get('NODES', '2'))}", "local_steps": 1}
        options["local_replicas"] = int(os.environ.get("REPLICAS", "0"))
    if SCENARIO == "local-unfinished":
        setattr(folder, "Slot", Unfinished)  # noqa: B010
    with Checkpointer.from_env(model=model, optimizer=optimizer, data=data, store=store, **options) as checkpointer:
        for step in checkpointer.steps(STEPS):
            if LOCAL and step == 7 and dist.get_rank() == 1 and FIRST and SCENARIO != "local-unfinished":
                fail_on_the_node(checkpointer)
            if LOCAL and step == 5 and (flight := checkpointer._beside._flight) is not None:
                flight.wait()  # the commit of step 4 is no part of any scenario
            inputs = torch.randn(8, 4) + data.position
            data.position += 1
            loss = model(inputs).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total = loss.detach().clone()
            dist.all_reduce(total)
            checkpointer.report(loss=total, samples=8)
            if dist.get_rank() == 0:
                line = {"step": step, "loss_hex": float(total).hex(), "samples": [data.position - 1, data.position]}
                sys.stdout.write(json.dumps(line) + "\n")  # unbuffered, and one write: others write there, too
            if uploading and step == 3 and dist.get_rank() == 1:
                upload: Any = checkpointer._shards._upload
                os.kill(upload._uploader.pid, signal.SIGKILL)
            if SCENARIO == "fenced" and step == 5 and dist.get_rank() == 0:
                JobCatalog(checkpointer.store).claim()
    dist.destroy_process_group()


main()
