from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as stock_load

from everstep.catalog import JobCatalog, Owner, Progress, open_store, read_heartbeat
from everstep.catalog.keys import MANIFEST, METADATA
from everstep.catalog.store.posix import PosixStore
from everstep.checkpoint import metadata as metadata_format
from everstep.checkpoint.environment import JobEnvironment, Policy
from everstep.checkpoint.restoring.reader import SavedShards
from everstep.errors import (
    ArchitectureMismatchError,
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CheckpointUnreadableError,
    FencedError,
    InvalidOperationError,
    StorageUnavailableError,
)

from .conftest import Job

Jobs = Callable[..., Job]


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


@pytest.mark.parametrize("kind", ["shard", METADATA, MANIFEST])
def test_a_flipped_byte_falls_back_to_the_step_before(job: Jobs, tmp_path: Path, kind: str) -> None:
    losses = job().run(tmp_path, 8, stop_after=7)
    flip(folder_of(tmp_path, 6) / ("__0_0.distcp" if kind == "shard" else kind))
    again = job(seed=5)
    with again.checkpointer(tmp_path, interval_steps=2) as checkpointer:
        resumed = [again.step() for _ in zip(checkpointer.steps(7), range(3), strict=False)]
        assert checkpointer.resumed is not None
        assert checkpointer.resumed.step == 4
    assert resumed == losses[4:7]
    catalog = JobCatalog(open_store(str(tmp_path))).require()
    bad = next(entry for entry in catalog.checkpoints if entry.step == 6)
    assert bad.state == "quarantined"
    assert bad.reason


def test_what_another_version_wrote_is_not_damaged(job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that this version's allow-list has not."""
    job().run(tmp_path, 4)
    known = {name for name in metadata_format._ALLOWED if name[1] != "StorageMeta"}
    monkeypatch.setattr(metadata_format, "_ALLOWED", known)
    with pytest.raises(InvalidOperationError, match=r"is intact, .*StorageMeta has no place.* saved with .*torch 2\."):
        job().checkpointer(tmp_path).load_latest()
    assert steps_of(tmp_path) == [2, 4]


def test_damage_that_is_gone_when_it_is_looked_at_again_costs_no_checkpoint(
    job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory or a cache that fails now and then is not storage that has lost bytes."""
    job().run(tmp_path, 4)
    read = PosixStore.read_into
    seen: list[str] = []

    def failing(store: PosixStore, key: str, start: int, into: memoryview) -> int:
        count = read(store, key, start, into)
        if key.endswith(".distcp") and len(seen) < 2:
            seen.append(key)
            into[0] ^= 1
        return count

    monkeypatch.setattr(PosixStore, "read_into", failing)
    with pytest.raises(StorageUnavailableError, match=r"are not those that were committed. Rank 0 .* finds no damage"):
        job().checkpointer(tmp_path).load_latest()
    assert steps_of(tmp_path) == [2, 4]


def _without_a_chunk(found: Metadata) -> None:
    """A piece of a tensor that no rank has stored."""
    kept: Any = found.state_dict_metadata["model.0.weight"]
    kept.chunks[:] = []


def _without_a_place(found: Metadata) -> None:
    for index in [each for each in found.storage_data or () if each.fqn == "model.0.weight"]:
        del found.storage_data[index]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_without_a_chunk, "0 of 32 elements are stored"), (_without_a_place, "does not say where model.0.weight")],
)
def test_what_was_written_wrong_is_intact_and_costs_no_checkpoint(
    job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Metadata], None], words: str
) -> None:
    """Its bytes are those that were committed: a mistake of who wrote it, which the step before has as well."""
    encode = metadata_format.encode

    def spoiling(found: Metadata, location: str) -> bytes:
        spoil(found)
        return encode(found, location)

    with monkeypatch.context() as patch:
        patch.setattr(metadata_format, "encode", spoiling)
        job().run(tmp_path, 4, asynchronous=False)
    with pytest.raises(CheckpointUnreadableError, match=rf"is intact, but cannot be read here: .*{words}.* saved with"):
        job().checkpointer(tmp_path).load_latest()
    assert steps_of(tmp_path) == [2, 4]


def test_what_is_removed_while_it_is_read_is_not_damaged(
    job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job().run(tmp_path, 8)
    catalog = JobCatalog(open_store(str(tmp_path)))
    plainly = SavedShards.read_into

    def late(self: SavedShards, number: int, start: int, into: memoryview) -> int:
        catalog.prune([str(self.location)])
        catalog.finish_removals()
        return plainly(self, number, start, into)

    monkeypatch.setattr(SavedShards, "read_into", late)
    for step, load in ((2, "load"), (4, "load_weights")):
        with pytest.raises(
            CheckpointNotFoundError, match=f"step {step} .* was removed from .* while it was being read"
        ):
            getattr(job().checkpointer(tmp_path), load)(step)


@pytest.mark.parametrize("name", ["__0_0.distcp", METADATA, MANIFEST])
def test_a_missing_file_falls_back(job: Jobs, tmp_path: Path, name: str) -> None:
    job().run(tmp_path, 4)
    (folder_of(tmp_path, 4) / name).unlink()
    with job().checkpointer(tmp_path) as checkpointer:
        found = checkpointer.load_latest()
    assert found is not None
    assert found.step == 2


def test_the_only_checkpoint_damaged(job: Jobs, tmp_path: Path) -> None:
    job().run(tmp_path, 2)
    path = folder_of(tmp_path, 2) / "__0_0.distcp"
    flip(path, path.stat().st_size - 2000)
    with job().checkpointer(tmp_path) as checkpointer:
        try:
            assert checkpointer.load_latest() is None  # found out before anything was touched: a fresh start
        except CheckpointCorruptError as error:
            assert "start again" in str(error)  # noqa: PT017
    with job().checkpointer(tmp_path) as checkpointer:
        assert checkpointer.load_latest() is None


def test_every_byte_of_a_shard_is_covered(job: Jobs, tmp_path: Path) -> None:
    job().run(tmp_path, 4, every=4)
    path = folder_of(tmp_path, 4) / "__0_0.distcp"
    body = path.read_bytes()
    for offset in range(0, len(body), max(1, len(body) // 23)):
        flip(path, offset)
        with pytest.raises(CheckpointCorruptError):
            job().checkpointer(tmp_path).load(4)
        path.write_bytes(body)
    job().checkpointer(tmp_path).load(4)


def test_a_store_out_of_reach_is_not_corruption(job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job().run(tmp_path, 4)
    monkeypatch.setattr("everstep.checkpoint.blocks.time.sleep", lambda _: None)

    def unreachable(*_: object) -> int:
        raise StorageUnavailableError("no route")

    monkeypatch.setattr(PosixStore, "read_into", unreachable)
    with job().checkpointer(tmp_path) as checkpointer, pytest.raises(StorageUnavailableError):
        checkpointer.load_latest()
    assert steps_of(tmp_path) == [2, 4]


def test_a_start_waits_for_storage(job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job().run(tmp_path, 4)
    failed: list[str] = []
    monkeypatch.setattr("everstep.checkpoint.blocks.time.sleep", lambda _: None)
    for name in ("read_register", "get", "read_into"):
        real = getattr(PosixStore, name)

        def flaky(*arguments: Any, name: str = name, real: Any = real) -> Any:
            if failed.count(name) < 2:
                failed.append(name)
                raise StorageUnavailableError("being restarted")
            return real(*arguments)

        monkeypatch.setattr(PosixStore, name, flaky)
    with job().checkpointer(tmp_path) as checkpointer:
        loaded = checkpointer.load_latest()
    assert loaded is not None
    assert loaded.step == 4
    assert len(failed) == 6


def test_another_architecture_is_named(job: Jobs, tmp_path: Path) -> None:
    job().run(tmp_path, 2)
    with pytest.raises(ArchitectureMismatchError, match=r"0\.weight: 8x4 in the checkpoint, 16x4 in the model"):
        job(width=16).checkpointer(tmp_path).load(2)
    with pytest.raises(SystemExit) as end, job(width=16).checkpointer(tmp_path, script=True) as checkpointer:
        checkpointer.load_latest()
    assert end.value.code == 78
    assert steps_of(tmp_path) == [2]


def test_a_zombie_commits_nothing(job: Jobs, tmp_path: Path) -> None:
    zombie, heir = job(), job()
    old = zombie.checkpointer(tmp_path)
    old.load_latest()
    old.begin(1)
    old.save_state()
    with heir.checkpointer(tmp_path) as new:
        assert new.load_latest() is None
        with pytest.raises(FencedError, match="fenced"):
            old.commit()
        new.begin(2)
        new.save_state()
        new.commit()
    old.close()
    assert steps_of(tmp_path) == [2]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_fenced_within_the_loop_ends_with_its_own_code(
    job: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str], asynchronous: bool
) -> None:
    mine = job()

    def train() -> None:
        with mine.checkpointer(tmp_path, script=True, interval_steps=2, asynchronous=asynchronous) as checkpointer:
            for step in checkpointer.steps(9):
                mine.step()
                if step == 3:
                    JobCatalog(checkpointer.store).claim()

    with pytest.raises(SystemExit) as end:
        train()
    assert end.value.code == 76
    assert capsys.readouterr().err.startswith("fenced: ")
    assert steps_of(tmp_path) in ([2], [] if asynchronous else [2])


def test_a_group_whose_peers_are_gone_says_that_it_was_fenced(
    job: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(rival: bool) -> None:
        with job().checkpointer(tmp_path, script=True) as checkpointer:
            for _ in checkpointer.steps(9):
                if rival:
                    JobCatalog(checkpointer.store).claim()
                raise RuntimeError("Connection closed by peer")

    with pytest.raises(RuntimeError, match="closed by peer"):
        train(rival=False)
    assert "fenced" not in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        train(rival=True)
    assert end.value.code == 76
    assert "fenced: " in capsys.readouterr().err


def test_a_group_that_does_not_save_hears_of_its_fence(
    job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everstep.checkpoint.heartbeat.FENCE_CHECK_SECONDS", 0.0)

    def train() -> None:
        with job().checkpointer(tmp_path, script=True, interval_steps=10**9, heartbeat_seconds=0.02) as checkpointer:
            for step in checkpointer.steps(10**6):
                if step == 3:
                    JobCatalog(checkpointer.store).claim()
                time.sleep(0.001)

    with pytest.raises(SystemExit) as end:
        train()
    assert end.value.code == 76


def test_an_attempt_claims_only_what_the_operator_fenced(job: Jobs, tmp_path: Path) -> None:
    owner = Owner(cluster="c", namespace="ns", name="job", uid="u1")
    catalog = JobCatalog(open_store(str(tmp_path)))
    for _ in range(2):
        catalog.fence(owner)
    for attempt, uid in ((1, "u1"), (2, "u0")):
        environment = JobEnvironment(root=str(tmp_path), attempt=attempt, job_uid=uid)
        with pytest.raises(FencedError):
            job().checkpointer(tmp_path, environment=environment).load_latest()
    environment = JobEnvironment(root=str(tmp_path), attempt=2, job_uid="u1")
    job().run(tmp_path, 2, environment=environment)
    assert [(e.step, e.attempt) for e in catalog.require().live()] == [(2, 2)]


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
    assert "loss" in beat.metrics


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
    assert manifest.metrics["loss"] > 0


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
