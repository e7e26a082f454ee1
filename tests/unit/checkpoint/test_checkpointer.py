"""A run, its transactions and what stands after them."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as stock_load

from everstep import Checkpointer
from everstep.catalog import JobCatalog, Progress, open_store, read_heartbeat
from everstep.catalog.keys import METADATA
from everstep.catalog.store.posix import PosixStore
from everstep.checkpoint import metadata as metadata_format
from everstep.checkpoint import signals
from everstep.checkpoint.environment import JobEnvironment, Policy
from everstep.checkpoint.restoring.model_weights import load_weights
from everstep.errors import (
    ArchitectureMismatchError,
    CheckpointNotFoundError,
    InvalidOperationError,
    StorageUnavailableError,
)

from .conftest import Job, folder_of, steps_of

Jobs = Callable[..., Job]


def test_a_resumed_run_is_the_run_that_was_never_interrupted(job: Jobs, tmp_path: Path) -> None:
    straight = job().run(tmp_path / "straight", 9)
    job().run(tmp_path / "broken", 9, stop_after=5)
    torch.manual_seed(77)  # the resumed process draws numbers of its own first
    again = job(seed=3).run(tmp_path / "broken", 9)
    assert again == straight[4:]
    assert steps_of(tmp_path / "broken") == [2, 4, 6, 8, 9]


def test_every_generator_comes_back(job: Jobs, tmp_path: Path) -> None:
    first = job()
    random.seed(1)
    np.random.seed(2)
    with first.checkpointer(tmp_path) as checkpointer:
        checkpointer.begin(1)
        checkpointer.save_state()
        checkpointer.commit()
        wanted = (random.random(), np.random.random(), torch.rand(1).item(), np.random.standard_normal())
    with job().checkpointer(tmp_path) as checkpointer:
        assert checkpointer.load_latest() is not None
    assert (random.random(), np.random.random(), torch.rand(1).item(), np.random.standard_normal()) == wanted


def test_transactions(job: Jobs, tmp_path: Path) -> None:
    with job().checkpointer(tmp_path) as checkpointer:
        assert checkpointer.load_latest() is None
        with pytest.raises(InvalidOperationError, match="call begin"):
            checkpointer.save_state()
        with pytest.raises(InvalidOperationError, match="call begin"):
            checkpointer.save_score(1.0)
        checkpointer.begin(3)
        with pytest.raises(InvalidOperationError, match="call save_state"):
            checkpointer.commit()
        with pytest.raises(InvalidOperationError, match="step 3 is still open"):
            checkpointer.begin(4)
        checkpointer.save_state(note="first")
        with pytest.raises(InvalidOperationError, match="already written"):
            checkpointer.save_state()
        checkpointer.save_score(0.5)
        committed = checkpointer.commit()
        assert (committed.step, committed.score, committed.custom) == (3, 0.5, {"note": "first"})
        checkpointer.begin(3)
        checkpointer.save_state()
        with pytest.raises(InvalidOperationError, match="not above"):
            checkpointer.commit()
        checkpointer.begin(5)
        checkpointer.abort()
    assert steps_of(tmp_path) == [3]
    loaded = job().checkpointer(tmp_path).load(3)
    assert (loaded.step, loaded.score, loaded.custom) == (3, 0.5, {"note": "first"})
    with pytest.raises(CheckpointNotFoundError, match="committed steps: 3"):
        job().checkpointer(tmp_path).load(4)


def test_another_architecture_is_named(job: Jobs, tmp_path: Path) -> None:
    job().run(tmp_path, 2)
    with pytest.raises(ArchitectureMismatchError, match=r"0\.weight: 8x4 in the checkpoint, 16x4 in the model"):
        job(width=16).checkpointer(tmp_path).load(2)
    with pytest.raises(SystemExit) as end, job(width=16).checkpointer(tmp_path, script=True) as checkpointer:
        checkpointer.load_latest()
    assert end.value.code == 78
    assert steps_of(tmp_path) == [2]


def test_stock_dcp_loads_a_committed_directory(job: Jobs, tmp_path: Path) -> None:
    mine = job()
    mine.run(tmp_path, 4)
    folder = folder_of(tmp_path, 4)
    wanted: dict[str, Any] = {"model": {k: torch.zeros_like(v) for k, v in mine.model.state_dict().items()}}
    stock_load(wanted, storage_reader=FileSystemReader(folder), no_dist=True)
    for name, value in mine.model.state_dict().items():
        assert torch.equal(wanted["model"][name], value)
    fresh = job(seed=9)
    state: dict[str, Any] = {"optimizer": get_optimizer_state_dict(fresh.model, fresh.optimizer)}
    stock_load(state, storage_reader=FileSystemReader(folder), no_dist=True)
    set_optimizer_state_dict(fresh.model, fresh.optimizer, state["optimizer"])
    for theirs, ours in zip(fresh.optimizer.state.values(), mine.optimizer.state.values(), strict=True):
        assert torch.equal(theirs["exp_avg_sq"], ours["exp_avg_sq"])


def test_where_a_tensors_bytes_lie_is_recorded(job: Jobs, tmp_path: Path) -> None:
    mine = job()
    mine.run(tmp_path, 2)
    folder = folder_of(tmp_path, 2)
    stored = metadata_format.decode((folder / METADATA).read_bytes())
    for name, value in mine.model.state_dict().items():
        [place] = [place for index, place in stored.storage_data.items() if index.fqn == f"model.{name}"]
        start = metadata_format.payload_of(place)
        assert start is not None
        assert place.offset < start < start + value.nbytes <= place.offset + place.length
        assert (folder / place.relative_path).read_bytes()[start:][: value.nbytes] == value.numpy().tobytes()


def test_sigterm_saves_this_step_and_ends(job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "termination"
    monkeypatch.setenv("EVERSTEP_TERMINATION_LOG", str(record))
    mine = job()
    before = signal.getsignal(signal.SIGTERM)

    def train() -> None:
        with mine.checkpointer(tmp_path / "root", interval_steps=100) as checkpointer:
            for step in checkpointer.steps(50):
                mine.step()
                if step == 7:
                    os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as end:
        train()
    assert end.value.code == 143
    assert steps_of(tmp_path / "root") == [8]
    assert '"SIGTERM"' in record.read_text()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def terminal() -> Iterator[None]:
    """Ctrl+C as Python has it at a terminal: a shell has what runs in its background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("terminal")
def test_ctrl_c_saves_as_sigterm_does(job: Jobs, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mine = job()

    def train() -> None:
        with mine.checkpointer(tmp_path / "root", interval_steps=100) as checkpointer:
            for step in checkpointer.steps(50):
                mine.step()
                if step == 7:
                    os.kill(os.getpid(), signal.SIGINT)
                    os.kill(os.getpid(), signal.SIGINT)  # from the terminal, and from the launcher

    with pytest.raises(SystemExit) as end:
        train()
    assert end.value.code == 143
    assert steps_of(tmp_path / "root") == [8]
    assert "Ctrl+C again stops at once" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("terminal")
def test_the_second_ctrl_c_ends_at_once(job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "AGAIN", 0.0)
    mine = job()

    def train() -> None:
        with mine.checkpointer(tmp_path / "root", interval_steps=100) as checkpointer:
            for _ in checkpointer.steps(50):
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert steps_of(tmp_path / "root") == []


def test_a_script_s_own_handler_of_ctrl_c_stays(job: Jobs, tmp_path: Path) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    mine = job()
    try:
        with mine.checkpointer(tmp_path / "root", interval_steps=100) as checkpointer:
            for _ in checkpointer.steps(3):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT] * 3
    assert steps_of(tmp_path / "root") == [3]


def test_seconds_make_a_save_due(job: Jobs, tmp_path: Path) -> None:
    mine = job()
    with mine.checkpointer(tmp_path, interval_seconds=1e-6, asynchronous=False) as checkpointer:
        for _ in checkpointer.steps(6):
            mine.step()
    assert steps_of(tmp_path) == [2, 4, 6]  # agreed upon one step, saved after the next


def test_a_failed_save_is_counted_and_training_goes_on(
    job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = PosixStore.put
    failing = iter([True])

    def flaky(store: PosixStore, key: str, *content: Any) -> int:
        if key.endswith(".distcp") and next(failing, False):
            raise StorageUnavailableError("the disk is on fire")
        return put(store, key, *content)

    monkeypatch.setattr(PosixStore, "put", flaky)
    job().run(tmp_path, 4)
    assert steps_of(tmp_path) == [4]
    found = read_heartbeat(open_store(str(tmp_path)), 1)
    assert isinstance(found, tuple)
    assert found[0].saves_failed == 1
    assert "on fire" in str(found[0].last_save_error)


def test_the_final_checkpoint_must_stand(job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageUnavailableError("no space")

    monkeypatch.setattr(PosixStore, "put", full)
    monkeypatch.setattr("everstep.checkpoint.checkpointer.FINAL_SAVE_PAUSE", 0.0)
    with pytest.raises(StorageUnavailableError, match="no space"):
        job().run(tmp_path, 1)


def test_the_heartbeat_tells_the_whole_story(job: Jobs, tmp_path: Path) -> None:
    job().run(tmp_path, 4)
    job().run(tmp_path, 6)
    found = read_heartbeat(open_store(str(tmp_path)), 2)
    assert isinstance(found, tuple)
    beat = found[0]
    assert (beat.phase, beat.step, beat.total_steps, beat.samples, beat.resumed_step) == ("finished", 6, 6, 12, 4)
    assert beat.beat > 1
    assert beat.first_step is not None
    assert beat.last_load is not None
    assert (beat.last_load.step, beat.last_load.retries, beat.last_load.bytes > 0) == (4, 0, True)
    assert "loss" in beat.metrics


def test_a_large_configuration_is_kept_as_its_digest(job: Jobs, tmp_path: Path) -> None:
    with job().checkpointer(tmp_path, config={"text": "x" * 70_000}) as checkpointer:
        checkpointer.save(1)
    catalog = JobCatalog(open_store(str(tmp_path)))
    manifest = catalog.manifest(catalog.require().live()[0])
    assert (manifest.config, bool(manifest.config_digest)) == (None, True)


def test_notes_are_kept_in_every_save_from_then_on(job: Jobs, tmp_path: Path) -> None:
    mine = job()
    with mine.checkpointer(tmp_path, interval_steps=2) as checkpointer:
        for step in checkpointer.steps(6):
            mine.step()
            if step == 3:
                checkpointer.note(corpus="v2")
        with pytest.raises(InvalidOperationError, match="note: corpus: kept as JSON"):
            checkpointer.note(corpus=object())
        assert checkpointer.save(7, score=0.5, corpus="v3", host="a").custom == {"corpus": "v3", "host": "a"}
    catalog = JobCatalog(open_store(str(tmp_path)))
    kept = [catalog.manifest(entry).custom for entry in catalog.require().live()]
    assert kept == [{}, {"corpus": "v2"}, {"corpus": "v2"}, {"corpus": "v3", "host": "a"}]
    assert catalog.require().live()[-1].score == 0.5


def test_a_dict_is_its_own_state(job: Jobs, tmp_path: Path) -> None:
    counts = {"problems": 0}
    mine = job()
    with mine.checkpointer(tmp_path, interval_steps=2, counts=counts) as checkpointer:
        for step in checkpointer.steps(5):
            mine.step()
            counts["problems"] += step
            if step == 5:
                break
    seen = counts = {"problems": -1, "other": 0}
    with job().checkpointer(tmp_path, counts=counts) as checkpointer:
        checkpointer.load_latest()
    assert seen == {"problems": 1 + 2 + 3 + 4}


def test_a_loop_of_one_s_own_saves_as_the_policy_says(job: Jobs, tmp_path: Path) -> None:
    def train(checkpointer: Checkpointer, steps: int) -> list[int]:
        found = checkpointer.load_latest()
        due = []
        for step in range(1 if found is None else found.step + 1, steps + 1):
            checkpointer.report(tokens=3)
            if checkpointer.due(step):
                due.append(step)
                checkpointer.save(step)
        return due

    with job().checkpointer(tmp_path / "steps", interval_steps=3) as checkpointer:
        assert train(checkpointer, 8) == [3, 6]
        assert checkpointer.progress.tokens == 24
    with job().checkpointer(tmp_path / "seconds", interval_seconds=1e-9) as checkpointer:
        assert train(checkpointer, 3) == [1, 2, 3]
    with job().checkpointer(tmp_path / "hour", interval_seconds=3600) as checkpointer:
        assert train(checkpointer, 3) == []
    beat = read_heartbeat(open_store(str(tmp_path / "hour")), 1)
    assert isinstance(beat, tuple)
    assert (beat[0].step, beat[0].tokens) == (3, 9), "a run that saves seldom shows that it lives"


def test_the_manifest_tells_the_whole_story(job: Jobs, tmp_path: Path) -> None:
    job().run(tmp_path, 4, config={"width": 8})
    catalog = JobCatalog(open_store(str(tmp_path)))
    latest = catalog.require().latest()
    assert latest is not None
    manifest = catalog.manifest(latest)
    assert manifest.progress == Progress(step=4, samples=8)
    assert {file.name for file in manifest.files} == {"__0_0.distcp", METADATA}
    assert {"torch", "everstep", "python"} <= set(manifest.versions)
    assert manifest.config_digest
    assert manifest.config == {"width": 8}
    assert manifest.metrics["loss"] > 0


@pytest.mark.slow
def test_retention_of_the_library_alone(job: Jobs, tmp_path: Path) -> None:
    policy = Policy.model_validate({"keepLast": 2, "keepBest": {"metric": "loss"}, "keepEvery": 4})
    environment = JobEnvironment(root=str(tmp_path), policy=policy)
    mine = job()
    with mine.checkpointer(tmp_path, environment=environment, interval_steps=1) as checkpointer:
        for step in checkpointer.steps(10):
            mine.step()
            checkpointer.report(loss=abs(step - 3))
    assert steps_of(tmp_path) == [3, 4, 8, 9, 10]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 5
    with job().checkpointer(tmp_path) as checkpointer:
        checkpointer.load_latest()
        checkpointer.keep_last(3)
        with pytest.raises(InvalidOperationError):
            checkpointer.keep_last(0)
        with pytest.raises(InvalidOperationError, match="an age in seconds"):
            checkpointer.keep_within(0)
    assert steps_of(tmp_path) == [8, 9, 10]
    with job().checkpointer(tmp_path, environment=environment, interval_steps=1) as checkpointer:
        checkpointer.keep_within(3600)
        for step in checkpointer.steps(14):
            assert step > 10
        checkpointer.keep_last(1)
    assert steps_of(tmp_path) == [8, 9, 10, 11, 12, 13, 14], "all younger than an hour"


def test_a_score_belongs_to_its_own_step(job: Jobs, tmp_path: Path) -> None:
    mine = job()
    with mine.checkpointer(tmp_path, interval_steps=2) as checkpointer:
        for step in checkpointer.steps(4):
            mine.step()
            checkpointer.report(score=1.5 if step == 3 else float("nan") if step == 4 else 0.5)
    catalog = JobCatalog(open_store(str(tmp_path))).require()
    assert [entry.score for entry in catalog.live()] == [0.5, None]


def test_training_on_from_an_older_step(job: Jobs, tmp_path: Path) -> None:
    losses = job().run(tmp_path, 6)
    again = job(seed=4).run(tmp_path, 6, resume_step=2)
    assert again == losses[2:]
    catalog = JobCatalog(open_store(str(tmp_path))).require()
    assert [(e.step, e.state) for e in catalog.checkpoints] == [
        (2, "live"), (4, "abandoned"), (6, "abandoned"), (4, "live"), (6, "live"),
    ]  # fmt: skip


@pytest.mark.parametrize("latest_first", [False, True])
def test_what_an_older_step_was_loaded_by_hand_for_is_not_training(
    job: Jobs, tmp_path: Path, latest_first: bool
) -> None:
    """The register would refuse its saves, and then take those above the newest for the same line."""
    job().run(tmp_path, 6)
    with job().checkpointer(tmp_path, interval_steps=2) as checkpointer:
        if latest_first:
            assert checkpointer.load_latest() is not None
        checkpointer.load(2)
        with pytest.raises(InvalidOperationError, match="step 2 was loaded, but step 6 is committed"):
            next(checkpointer.steps(12))
        checkpointer.load(6)
        assert list(checkpointer.steps(7)) == [7]
        assert list(checkpointer.steps(9)) == [8, 9]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_script_may_have_another_default_device(job: Jobs, tmp_path: Path, asynchronous: bool) -> None:
    first, second = job(), job(seed=3)
    first.step()
    second.step()
    with torch.device("meta"):
        first.checkpointer(tmp_path, asynchronous=asynchronous).save(1)
        second.checkpointer(tmp_path).load(1)
    for name, value in first.model.state_dict().items():
        assert value.equal(second.model.state_dict()[name])
    for mine, found in zip(first.optimizer.state.values(), second.optimizer.state.values(), strict=True):
        assert all(value.equal(found[name]) for name, value in mine.items())


class Pair(torch.nn.Module):
    """Two matrices, or one by two names."""

    def __init__(self, tied: bool, rows: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(256, rows, bias=False)
        self.embed = torch.nn.Linear(256, rows, bias=False)
        if tied:
            self.embed.weight = self.head.weight


@pytest.mark.parametrize("rows", [4, 40_000])
@pytest.mark.parametrize("tied", [False, True])
def test_of_names_that_share_their_memory_the_last_one_counts(tmp_path: Path, tied: bool, rows: int) -> None:
    """As in `load_state_dict`: never a mixture, also where both were different when they were saved."""
    saved, model = Pair(tied, rows), Pair(True, rows)
    Checkpointer(model=saved, root=str(tmp_path)).save(1)
    load_weights(model, str(tmp_path))
    assert model.embed.weight.equal(saved.embed.weight)
    assert model.head.weight is model.embed.weight


class Average:
    """An object of the user's with tensors, numbers and arrays."""

    def __init__(self, value: float) -> None:
        self.shadow: dict[str, Any] = {"a": torch.full((3, 2), value), "b": [torch.tensor(value), "text"]}
        self.array = np.arange(4.0) * value

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow, "array": self.array, "pair": (1, None)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["pair"] == (1, None)
        self.shadow, self.array = state["shadow"], state["array"]


def test_further_objects_are_kept(job: Jobs, tmp_path: Path) -> None:
    with job().checkpointer(tmp_path, average=Average(2.0)) as checkpointer:
        checkpointer.begin(1)
        checkpointer.save_state()
        checkpointer.commit()
    fresh = Average(0.0)
    job().checkpointer(tmp_path, average=fresh).load(1)
    assert torch.equal(fresh.shadow["a"], torch.full((3, 2), 2.0))
    assert fresh.shadow["b"][1] == "text"
    assert np.array_equal(fresh.array, np.arange(4.0) * 2)
    with pytest.raises(InvalidOperationError, match="no 'other'"):
        job().checkpointer(tmp_path, other=Average(0.0)).load(1)


def test_what_cannot_be_restored_is_refused_when_saved(job: Jobs, tmp_path: Path) -> None:
    class Odd:
        def state_dict(self) -> dict[str, Any]:
            return {"when": object()}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    with job().checkpointer(tmp_path, odd=Odd()) as checkpointer:
        checkpointer.begin(1)
        with pytest.raises(Exception, match=r"objects\.odd\.when: a builtins\.object"):
            checkpointer.save_state()
    with pytest.raises(InvalidOperationError, match="thing: a int has neither"):
        job().checkpointer(tmp_path, thing=3)


def test_an_optimizer_that_never_stepped_stays_untouched(job: Jobs, tmp_path: Path) -> None:
    mine = job()
    seen: list[int] = []
    mine.optimizer.register_step_post_hook(lambda *_: seen.append(1))
    before = {name: value.clone() for name, value in mine.model.state_dict().items()}
    with mine.checkpointer(tmp_path) as checkpointer:
        checkpointer.begin(0)
        checkpointer.save_state()
        checkpointer.commit()
    assert not mine.optimizer.state
    assert not seen
    assert all(torch.equal(before[name], value) for name, value in mine.model.state_dict().items())
    fresh = job(seed=8)
    fresh.checkpointer(tmp_path).load(0)
    assert not fresh.optimizer.state
    assert torch.equal(fresh.model.state_dict()["0.weight"], before["0.weight"])


def test_no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERSTEP_ROOT", raising=False)
    from everstep import Checkpointer

    with pytest.raises(InvalidOperationError, match="EVERSTEP_ROOT"):
        Checkpointer()
