"""What is damaged is set aside, and what only seems so is not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata

from everstep.catalog import JobCatalog, open_store
from everstep.catalog.keys import MANIFEST, METADATA
from everstep.catalog.store.posix import PosixStore
from everstep.checkpoint import metadata as metadata_format
from everstep.checkpoint.restoring.reader import SavedShards
from everstep.checkpoint.state.application import Application, Torn
from everstep.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CheckpointUnreadableError,
    InvalidOperationError,
    StorageUnavailableError,
    TornStateError,
)

from .conftest import Job, flip, folder_of, steps_of

Jobs = Callable[..., Job]


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
    seen: list[int] = []

    def failing(store: PosixStore, key: str, start: int, into: memoryview) -> int:
        count = read(store, key, start, into)
        reader = threading.get_ident()
        if threading.current_thread().name.startswith("everstep-ahead"):
            into[0] ^= 1
        elif key.endswith(".distcp") and seen in ([], [reader]):  # twice for the same reader: others read beside it
            seen.append(reader)
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

    one_at_a_time = threading.Lock()

    def late(self: SavedShards, number: int, start: int, into: memoryview) -> int:
        with one_at_a_time:
            for hold in catalog.require().holds:
                with pytest.raises(InvalidOperationError, match="held by load"):
                    catalog.prune([str(self.location)])
                catalog.release(hold.location, hold.by)  # as if this reader could only read
            if catalog.require().find(str(self.location)) is not None:  # another thread reads as well
                catalog.prune([str(self.location)])
                catalog.finish_removals()
        self._ahead = None  # as of all that lies behind what was fetched ahead
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


@pytest.mark.parametrize("weights", [False, True])
def test_what_a_failed_load_has_left_behind_is_not_saved(job: Jobs, tmp_path: Path, weights: bool) -> None:
    """Live tensors may then hold a part of the damaged step, and a part of what was there before."""
    job(width=60_000).run(tmp_path, 4)  # of more than one block
    flip(folder_of(tmp_path, 2) / "__0_0.distcp")
    other = job(width=60_000, seed=5)
    with other.checkpointer(tmp_path) as checkpointer:
        checkpointer.load_latest()
        with pytest.raises(CheckpointCorruptError):
            checkpointer.load_weights(2) if weights else checkpointer.load(2)
        for keep in (lambda: checkpointer.save(5), checkpointer.publish_weights, lambda: next(checkpointer.steps(9))):
            with pytest.raises(TornStateError, match=r"may hold a part of .*step 2 .*nothing is saved; load a step"):
                keep()
        assert steps_of(tmp_path) == [2, 4]
        checkpointer.load_weights(4)  # enough where only weights were torn
        if not weights:
            with pytest.raises(TornStateError, match="may hold a part of"):
                checkpointer.save(5)
            checkpointer.load(4)
        checkpointer.save(5)
    assert steps_of(tmp_path) == [2, 4, 5]


def test_as_much_as_was_torn_has_to_be_filled() -> None:
    app = Application(torch.nn.Linear(1, 1))

    def fill(names: set[str] | None, error: type[BaseException] | None = None) -> Torn | None:
        with suppress(OSError, KeyboardInterrupt), app.filling(f"step {len(names or ())}", names):
            if error is not None:
                raise error
        return app.torn

    assert fill({"a", "b"}) is None
    assert fill({"a"}, OSError) == Torn("step 1", frozenset("a"))
    assert fill({"b", "c"}, OSError) == Torn("step 2", frozenset("abc"))
    assert fill({"a", "c"}) == Torn("step 2", frozenset("b"))
    assert fill({"b"}) is None
    assert fill({"a"}, OSError) is not None
    assert fill(None, OSError) == Torn("step 0", None)
    assert fill({"a"}) == Torn("step 0", None)
    assert fill(None) is None
    assert fill({"a"}, KeyboardInterrupt) == Torn("step 1", None, final=True)
    assert fill(None) is not None, "a thread may write yet"
    assert fill(None, OSError) == Torn("step 0", None, final=True)
    assert fill(None) is not None
    with pytest.raises(TornStateError, match="start again"):
        app.check_whole()


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
    assert len(failed) >= 6
