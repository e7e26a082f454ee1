"""One flipped byte, anywhere in a checkpoint."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from everstep.catalog import Entry, JobCatalog, Manifest, ResumePoint, open_store
from everstep.catalog.keys import COMMITTED
from everstep.catalog.verify import verify_save
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.restoring.loading import load_state
from everstep.checkpoint.restoring.restoration import open_saved
from everstep.checkpoint.state.application import COMMON, RANK
from everstep.errors import CheckpointCorruptError

from .conftest import Job

Jobs = Callable[..., Job]

POSITIONS = 1000
WIDTH = 14_000  # about a MiB of state: several blocks of checksums, some of them with parts of several tensors


def entry_of(root: Path, step: int) -> Entry:
    return next(entry for entry in JobCatalog(open_store(str(root))).require().checkpoints if entry.step == step)


def positions(folder: Path, count: int) -> list[tuple[Path, int]]:
    """Each byte of the checkpoint as likely as any other."""
    files = sorted(path for path in folder.iterdir() if path.name != COMMITTED)
    sizes = [path.stat().st_size for path in files]
    chosen = random.Random(5)
    paths = chosen.choices(files, sizes, k=count)
    return [(path, chosen.randrange(path.stat().st_size)) for path in paths]


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << offset % 8)]))


def verify(root: Path, entry: Entry) -> Manifest:
    store = open_store(str(root))
    manifest = JobCatalog(store).manifest(entry)
    verify_save(store, manifest)
    return manifest


def restore(root: Path, entry: Entry, into: dict[str, Any]) -> None:
    """What a whole restore reads, without the objects around it."""
    saved = open_saved(open_store(str(root)), ResumePoint(entry.step, entry.location, entry.digest), Gang())
    assert saved.read_tensor(COMMON) is not None
    assert saved.read_tensor(f"{RANK}0") is not None
    load_state(into, saved, Gang())


@pytest.mark.slow
def test_a_thousand_flipped_bytes_are_found(job: Jobs, tmp_path: Path) -> None:
    first = job(width=WIDTH)
    first.run(tmp_path, 2)
    entry = entry_of(tmp_path, 2)
    other = job(width=WIDTH, seed=1)
    state: dict[str, Any] = {
        "model": {name: torch.zeros_like(value) for name, value in first.model.state_dict().items()},
        "optimizer": dict(get_optimizer_state_dict(other.model, other.optimizer)),
    }
    wanted = first.model.state_dict()
    found = {"verify": 0, "restore": 0, "weights": 0}
    for path, offset in positions(tmp_path / entry.location, POSITIONS):
        flip(path, offset)
        for name, attempt in (
            ("verify", lambda: verify(tmp_path, entry)),
            ("restore", lambda: restore(tmp_path, entry, state)),
            ("weights", lambda: restore(tmp_path, entry, {"model": state["model"]})),
        ):
            try:
                attempt()
            except CheckpointCorruptError:
                found[name] += 1
            else:  # the byte is none that was used
                assert name == "weights"
                assert all(torch.equal(value, state["model"][key]) for key, value in wanted.items())
        flip(path, offset)
    assert found["verify"] == found["restore"] == POSITIONS
    assert POSITIONS / 4 < found["weights"] < POSITIONS
    verify(tmp_path, entry)
    restore(tmp_path, entry, state)


@pytest.mark.parametrize("number", range(8))
def test_after_any_flipped_byte_the_run_goes_on_from_the_step_before(job: Jobs, tmp_path: Path, number: int) -> None:
    losses = job().run(tmp_path / "straight", 9)
    root = tmp_path / "broken"
    job().run(root, 9, stop_after=7)
    entry = entry_of(root, 6)
    path, offset = positions(root / entry.location, 8)[number]
    flip(path, offset)
    again = job(seed=3).run(root, 9)
    assert again == losses[4:]
    states = [(found.step, found.state) for found in JobCatalog(open_store(str(root))).require().checkpoints]
    assert states == [(2, "live"), (4, "live"), (6, "quarantined"), (6, "live"), (8, "live"), (9, "live")]
