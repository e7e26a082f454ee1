"""One checkpoint a step while others take the CPUs; then each is read back by torch's own reader and compared.

usage: saving.py SAVES natural|last, with EVERSTEP_ROOT and credentials in the environment. `last`: the copy begins when
the next optimizer step waits for it. Prints what it found as JSON; ends with a traceback where a byte is wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from everstep.catalog import Entry, JobCatalog, Store
from everstep.checkpoint.transactions import Committed
from tests.support.restless import Run, copy_at_the_last_moment

WIDTH = 20_000
"""4 MB of parameters, buffers, optimizer state and averages: a copy takes about as long as a step."""


@contextmanager
def load_on_every_cpu() -> Iterator[None]:
    loop = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"  # it ends with this process
    busy = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def digests(state: dict[str, torch.Tensor]) -> dict[str, str]:
    return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in state.items()}


def stored(store: Store, entry: Entry, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state: dict[str, Any] = {name: torch.full_like(value, 77) for name, value in like.items()}
    with tempfile.TemporaryDirectory() as folder:
        for info in store.list(f"{entry.location}/"):
            (Path(folder) / Path(info.key).name).write_bytes(store.get(info.key))
        load(state, storage_reader=FileSystemReader(folder), no_dist=True)
    return state


def main() -> None:
    saves, timing = int(sys.argv[1]), sys.argv[2]
    if timing == "last":
        copy_at_the_last_moment(pytest.MonkeyPatch())
    run = Run(WIDTH)
    live: dict[int, dict[str, str]] = {}
    blocked: list[float] = []

    def stood(committed: Committed) -> None:
        assert committed.times is not None
        blocked.append(committed.times.blocked_seconds)

    with load_on_every_cpu(), run.checkpointer(os.environ["EVERSTEP_ROOT"], interval_steps=1) as checkpointer:
        checkpointer.on_commit(stood)
        for step in checkpointer.steps(saves):
            run.step()
            live[step] = digests(run.live())
        assert checkpointer._failures.total == 0, "a save failed"
    store = checkpointer.store
    entries = {entry.step: entry for entry in JobCatalog(store).require().live()}
    assert sorted(entries) == list(live), "not every step was committed"
    like = run.live()
    before: dict[str, str] = {}
    for step, wanted in live.items():
        found = digests(stored(store, entries[step], like))
        wrong = [name for name, digest in wanted.items() if found[name] != digest]
        assert not wrong, f"step {step}: {wrong} are not what was live"
        same = [name for name in CHANGING if before.get(name) == found[name]]
        assert not same, f"step {step}: {same} are those of the step before"
        before = found
    print(
        json.dumps(
            {
                "saves": len(entries),
                "timing": timing,
                "tensors": len(like),
                "bytes": entries[saves].bytes,
                "blocked_median": statistics.median(blocked),
                "blocked_most": max(blocked),
            }
        )
    )


CHANGING = (
    *("model.first.weight", "model.norm.running_mean", "model.norm.num_batches_tracked", "model.target"),
    *("optimizer.state.first.weight.exp_avg", "everstep.objects.average/module.first.weight"),
    "everstep.objects.average/module.norm.running_mean",
)
"""Trained weights, buffers, a weight that is set by hand, optimizer state, averages: all change at each step."""


if __name__ == "__main__":
    main()
