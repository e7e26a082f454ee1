"""Where a run begins: resume modes, checkpoints of other jobs, weights alone; and what does not fit."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from everstep import Checkpointer
from everstep.catalog import JobCatalog, Owner, open_store
from everstep.catalog.store.posix import PosixStore
from everstep.checkpoint.environment import JobEnvironment
from everstep.checkpoint.restoring.model_weights import load_weights
from everstep.errors import ArchitectureMismatchError, CheckpointNotFoundError, InvalidOperationError

from .conftest import Job

Jobs = Callable[..., Job]


def entries(root: Path) -> list[tuple[int, str]]:
    return [(entry.step, entry.state) for entry in JobCatalog(open_store(str(root))).require().checkpoints]


def begin(job: Job, root: Path, **options: Any) -> int:
    """The step that a new process with these options resumes, 0 for none."""
    with job.checkpointer(root, interval_steps=2, **options) as checkpointer:
        found = checkpointer.load_latest()
    return 0 if found is None else found.step


def test_auto_begins_afresh_with_a_warning(job: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "everstep"):
        assert begin(job(), tmp_path) == 0
    [said] = [record for record in caplog.records if record.message.startswith(f"fresh start in {tmp_path}")]
    assert said.levelno == logging.WARNING
    job().run(tmp_path, 4)
    assert begin(job(), tmp_path) == 4


def test_disable_sets_aside_what_stands(
    job: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    job().run(tmp_path, 4)
    caplog.clear()
    with caplog.at_level(logging.INFO, "everstep"):
        assert begin(job(), tmp_path, resume="disable") == 0
    [said] = [record for record in caplog.records if record.message.startswith("fresh start in ")]
    assert said.levelno == logging.INFO
    assert entries(tmp_path) == [(2, "abandoned"), (4, "abandoned")]
    job().run(tmp_path, 2, resume="disable")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert begin(job(), tmp_path, resume="disable") == 2, "a restart in place goes on"


def test_a_path_forks_another_job_once(job: Jobs, tmp_path: Path) -> None:
    source, child = tmp_path / "source", tmp_path / "child"
    losses = job().run(source, 9)
    second = job(seed=4)
    with second.checkpointer(child, resume=str(source), interval_steps=100) as checkpointer:
        assert checkpointer.load_latest() is not None
    location = next(e.location for e in JobCatalog(open_store(str(source))).require().live() if e.step == 4)
    third = job(seed=5)
    assert third.run(child, 8, resume=f"{source}/{location}", stop_after=7) == losses[4:7]
    assert entries(child) == [(6, "live")]
    assert [hold.location for hold in JobCatalog(open_store(str(source))).require().holds].count(location) == 1
    assert begin(job(), child, resume=f"{source}/{location}") == 6, "begun from there before: it goes on"
    assert begin(job(), child) == 6


def test_a_relative_path_means_the_same_place_to_the_next_process(
    job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job().run(tmp_path / "run", 4, every=1)
    location = JobCatalog(open_store("run")).require().live()[1].location
    assert begin(job(), Path("run"), resume=f"run/{location}") == 2
    assert entries(tmp_path / "run") == [(1, "live"), (2, "live"), (3, "abandoned"), (4, "abandoned")], "no fork"
    assert begin(job(), Path("child"), resume="./run") == 2
    source = JobCatalog(open_store("child")).require().source
    assert source is not None
    assert source.root == f"{tmp_path}/run"


def test_a_fork_goes_on_though_its_source_does_too_or_is_gone(job: Jobs, tmp_path: Path) -> None:
    source, child = tmp_path / "source", tmp_path / "child"
    job().run(source, 4)
    job().run(child, 10, resume=str(source), stop_after=9)
    assert entries(child) == [(6, "live"), (8, "live")]
    job().run(source, 12)
    assert begin(job(), child, resume=str(source)) == 8
    shutil.rmtree(source)
    assert begin(job(), child, resume=str(source)) == 8
    assert entries(child) == [(6, "live"), (8, "live")]


def test_a_fork_that_has_committed_nothing_begins_at_what_its_source_has_now(job: Jobs, tmp_path: Path) -> None:
    source, child = tmp_path / "source", tmp_path / "child"
    job().run(source, 4)
    assert begin(job(), child, resume=str(source)) == 4
    job().run(source, 6)
    assert begin(job(), child, resume=str(source)) == 6


def test_a_path_that_is_not_there(job: Jobs, tmp_path: Path) -> None:
    job().run(tmp_path / "source", 2)
    absent = f"{tmp_path}/source/checkpoints/step_000000000009-000001-abcdefabcdef"
    for path, text in ((f"{tmp_path}/nowhere", "no catalog.json"), (absent, "is not committed; committed there: step")):
        with pytest.raises(CheckpointNotFoundError, match=text):
            begin(job(), tmp_path / "child", resume=path)
    with pytest.raises(InvalidOperationError, match="auto, disable, or the path"):
        begin(job(), tmp_path / "child", resume="latest")
    with pytest.raises(InvalidOperationError, match="one of the two"):
        begin(job(), tmp_path / "child", resume="disable", resume_step=2)
    with pytest.raises(InvalidOperationError, match="is not a checkpoint location"):
        begin(job(), tmp_path / "child", resume=f"{tmp_path}/source/checkpoints/step_9")


def test_under_an_operator_the_mode_is_the_operators(job: Jobs, tmp_path: Path) -> None:
    job().run(tmp_path, 2)
    catalog = JobCatalog(open_store(str(tmp_path)))
    catalog.fence(Owner(cluster="c", namespace="ns", name="job", uid="u1"))
    environment = JobEnvironment(root=str(tmp_path), attempt=catalog.require().attempt, job_uid="u1")
    assert begin(job(), tmp_path, resume="disable", environment=environment) == 2


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of shards, a number for each request."""
    sizes: list[int] = []
    real = PosixStore.read_into

    def counted(store: PosixStore, key: str, start: int, into: memoryview) -> int:
        if key.endswith(".distcp"):
            sizes.append(len(into))
        return real(store, key, start, into)

    monkeypatch.setattr(PosixStore, "read_into", counted)
    return sizes


@pytest.mark.slow
def test_hardly_a_byte_more_than_needed_is_fetched_in_few_requests(
    job: Jobs, tmp_path: Path, fetched: list[int]
) -> None:
    """A state of 82 MiB, in tensors of all sizes."""
    large = job(width=1_200_000)
    large.run(tmp_path, 2)
    fetched.clear()
    job(width=1_200_000, seed=1).checkpointer(tmp_path).load(2)
    needed = 3 * sum(value.nbytes for value in large.model.state_dict().values())
    assert needed > 80 << 20
    assert needed <= sum(fetched) < 1.02 * needed
    assert len(fetched) < 16


def test_weights_alone(job: Jobs, tmp_path: Path, fetched: list[int]) -> None:
    trained = job(width=100_000)
    trained.run(tmp_path, 4)
    folder = next(e.location for e in JobCatalog(open_store(str(tmp_path))).require().live() if e.step == 4)
    for uri, step in ((str(tmp_path), None), (str(tmp_path), 4), (f"{tmp_path}/{folder}", None)):
        fresh = job(width=100_000, seed=1)
        random = torch.get_rng_state()
        fetched.clear()
        assert load_weights(fresh.model, uri, step).step == 4
        weights = sum(value.nbytes for value in trained.model.state_dict().values())
        assert sum(fetched) < 1.4 * weights, "nothing of the optimizer, which is twice as large"
        for name, value in trained.model.state_dict().items():
            assert torch.equal(fresh.model.state_dict()[name], value)
        assert torch.equal(torch.get_rng_state(), random)
        assert not fresh.optimizer.state
    with pytest.raises(CheckpointNotFoundError, match="committed steps: 2, 4"):
        load_weights(fresh.model, str(tmp_path), 3)
    with pytest.raises(CheckpointNotFoundError, match=r"no catalog\.json"):
        load_weights(fresh.model, f"{tmp_path}/nowhere")
    with pytest.raises(CheckpointNotFoundError, match="is not a committed checkpoint"):
        load_weights(fresh.model, f"{tmp_path}/{folder[:-1]}{'0' if folder[-1] != '0' else '1'}")


def test_a_run_that_begins_with_weights_of_another(job: Jobs, tmp_path: Path) -> None:
    trained = job()
    trained.run(tmp_path / "first", 4)
    tuned = job(seed=1)
    with tuned.checkpointer(tmp_path / "second", interval_steps=2) as checkpointer:
        assert checkpointer.load_latest() is None
        assert checkpointer.load_weights(str(tmp_path / "first")).step == 4
        for name, value in trained.model.state_dict().items():
            assert torch.equal(tuned.model.state_dict()[name], value)
        for number, step in enumerate(checkpointer.steps(3)):
            assert step == number + 1
            tuned.step()
        assert checkpointer.load_weights(2).step == 2
    with pytest.raises(InvalidOperationError, match="no model"):
        Checkpointer(data=tuned.data, root=str(tmp_path / "second")).load_weights(2)


def test_weights_of_another_model_as_far_as_they_fit(
    job: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as those of a base model with another head."""
    trained = job()
    trained.model.add_module("old", torch.nn.Linear(1, 2))
    trained.run(tmp_path, 2)
    tuned = Renamed()
    before = snapshot(tuned)
    with caplog.at_level("WARNING", "everstep"):
        found = load_weights(tuned.model, str(tmp_path), strict=False)
    assert (found.step, found.missing, found.unexpected) == (
        2,
        ("extra.weight", "extra.bias"),
        ("old.weight", "old.bias"),
    )
    assert (
        "not in the checkpoint, and as they were: extra.weight, extra.bias; only in the checkpoint: old." in caplog.text
    )
    wanted = trained.model.state_dict()
    for name, value in tuned.model.state_dict().items():
        assert torch.equal(value, before[name] if name in found.missing else wanted[name])
    same = load_weights(trained.model, str(tmp_path), strict=False)
    assert (same.missing, same.unexpected) == ((), ())
    with pytest.raises(ArchitectureMismatchError, match="8x4 in the checkpoint, 16x4 in the model"):
        Checkpointer(model=job(width=16).model, root=str(tmp_path)).load_weights(2, strict=False)
    with pytest.raises(ArchitectureMismatchError, match="nothing of the model is in the checkpoint: it has 0"):
        load_weights(torch.nn.Linear(4, 8), str(tmp_path), strict=False)


# what does not fit


def digest(config: dict[str, int]) -> str:
    return hashlib.sha256(json.dumps(config).encode()).hexdigest()


def snapshot(job: Job) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in job.model.state_dict().items()}


class Renamed(Job):
    def __init__(self) -> None:
        super().__init__(seed=1)
        self.model.add_module("extra", torch.nn.Linear(1, 1))


@pytest.mark.parametrize("how", ["load", "load_weights"])
def test_what_differs_is_named_before_anything_is_touched(job: Jobs, tmp_path: Path, how: str) -> None:
    job().run(tmp_path, 2, config={"width": 8})
    wide, narrow, other = job(width=16, seed=1), job(seed=1), Renamed()
    narrow.model.bfloat16()
    cases = (
        (wide, "0.weight: 8x4 in the checkpoint, 16x4 in the model; 0.bias: 8 in the checkpoint, 16 in the model"),
        (narrow, "0.weight: 8x4 float32 in the checkpoint, 8x4 bfloat16 in the model"),
        (other, "extra.weight: absent in the checkpoint, 1x1 in the model"),
    )
    for misfit, text in cases:
        before = snapshot(misfit)
        checkpointer = Checkpointer(model=misfit.model, root=str(tmp_path), config={"width": 16})
        with pytest.raises(ArchitectureMismatchError) as found:
            getattr(checkpointer, how)(2)
        message = str(found.value)
        assert text in message
        theirs, ours = (digest({"width": width})[:12] for width in (8, 16))
        assert f"Saved with 1 rank, mesh none, config {theirs}; now 1 rank, mesh none, config {ours}." in message
        assert "Build the model" in message
        assert all(torch.equal(before[name], value) for name, value in snapshot(misfit).items())


def test_tensors_that_only_the_checkpoint_has(job: Jobs, tmp_path: Path) -> None:
    first = job()
    first.model.append(torch.nn.Linear(1, 3))
    first.run(tmp_path, 2)
    with pytest.raises(ArchitectureMismatchError, match=r"3\.weight: 3x1 in the checkpoint, absent in the model"):
        job().checkpointer(tmp_path).load(2)


def test_what_was_not_saved_is_missed_before_anything_is_touched(job: Jobs, tmp_path: Path) -> None:
    first = job()
    with Checkpointer(model=first.model, root=str(tmp_path)) as checkpointer:
        checkpointer.begin(1)
        checkpointer.save_state()
        checkpointer.commit()
    again = job(seed=1)
    before = snapshot(again)
    for wanted, text in (
        ({"data": again.data}, "no data state"),
        ({"scheduler": again.scheduler}, "no scheduler"),
        ({"average": again.scheduler}, "no 'average'"),
    ):
        with pytest.raises(InvalidOperationError, match=text):
            Checkpointer(model=again.model, root=str(tmp_path), **wanted).load(1)
        assert all(torch.equal(before[name], value) for name, value in snapshot(again).items())
