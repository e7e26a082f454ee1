"""One flipped byte, anywhere in a checkpoint: it is found, and the run goes on from the step before."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from everstep.catalog import Entry, JobCatalog, Manifest, ResumePoint, open_store
from everstep.catalog.keys import COMMITTED, MANIFEST, METADATA
from everstep.catalog.verify import verify_save
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.restoring.loading import load_state
from everstep.checkpoint.restoring.restoration import open_saved
from everstep.checkpoint.state.application import COMMON, RANK
from everstep.errors import CheckpointCorruptError
from tests.guards import size
from tests.unit.checkpoint.conftest import Job, job

__all__ = ["job"]

Jobs = Callable[..., Job]

WIDTH = 14_000  # about a MiB of state: several blocks of checksums, some of them with parts of several tensors
pytestmark = pytest.mark.timeout(size.SECONDS)


def entry_of(root: Path, step: int) -> Entry:
    return next(entry for entry in JobCatalog(open_store(str(root))).require().checkpoints if entry.step == step)


def positions(folder: Path, count: int) -> list[tuple[Path, int]]:
    """A tenth in the manifest and in the metadata each, the others where each byte is as likely as any other."""
    files = sorted(path for path in folder.iterdir() if path.name != COMMITTED)
    sizes = [path.stat().st_size for path in files]
    chosen = random.Random(5)
    small = [folder / name for name in (MANIFEST, METADATA) for _ in range(count // 10)]
    paths = small + chosen.choices(files, sizes, k=count - len(small))
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


def test_every_flipped_byte_is_found(job: Jobs, tmp_path: Path) -> None:
    count = size.times(1000, 200)
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
    files: Counter[str] = Counter()
    for path, offset in positions(tmp_path / entry.location, count):
        files[path.name] += 1
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
    assert found["verify"] == found["restore"] == count
    assert count / 4 < found["weights"] < count
    verify(tmp_path, entry)
    restore(tmp_path, entry, state)
    size.record("flips-found", positions=count, found=found, files=dict(files))


def test_after_any_flipped_byte_the_run_goes_on_from_the_step_before(job: Jobs, tmp_path: Path) -> None:
    """The real restore, its quarantine and the steps after it, for each position."""
    count = size.times(1000, 20)
    losses = job().run(tmp_path / "straight", 9)
    job().run(tmp_path / "whole", 9, stop_after=7)
    entry = entry_of(tmp_path / "whole", 6)
    files: Counter[str] = Counter()
    for path, offset in positions(tmp_path / "whole" / entry.location, count):
        root = tmp_path / "broken"
        shutil.copytree(tmp_path / "whole", root)
        flip(root / entry.location / path.name, offset)
        again = job(seed=3).run(root, 9)
        assert again == losses[4:], f"byte {offset} of {path.name}"
        states = [(found.step, found.state) for found in JobCatalog(open_store(str(root))).require().checkpoints]
        assert states == [(2, "live"), (4, "live"), (6, "quarantined"), (6, "live"), (8, "live"), (9, "live")]
        files[path.name] += 1
        shutil.rmtree(root)
    size.record("flips-survived", positions=count, files=dict(files))
