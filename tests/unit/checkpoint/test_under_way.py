"""What rank 0 does while shards are under way, and what of it counts when they do not arrive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from everstep import Checkpointer
from everstep.catalog import JobCatalog, open_store
from everstep.catalog.store.posix import PosixStore
from everstep.catalog.store.threads import begin
from everstep.checkpoint.saving.shards import Sending
from everstep.checkpoint.saving.uploading import DirectUpload, Keyed, Stored, Storing
from everstep.checkpoint.transactions import Committed
from everstep.errors import CheckpointError, StorageRefusedError, StorageUnavailableError

from .conftest import Job, steps_of

Jobs = Callable[..., Job]


class Afar(DirectUpload):
    """Stores beside whoever began, as the uploader's process does, once it may."""

    def __init__(self, root: Path) -> None:
        super().__init__(open_store(str(root)))
        self.arriving = threading.Event()
        self.under_way = 0
        self.error: Exception | None = None

    def begin(self, files: Sequence[Keyed]) -> Storing:
        self.under_way += 1
        error = self.error
        stored: Future[Stored] = begin(lambda: self._arrive(files, error), "afar")
        return stored.result

    def _arrive(self, files: Sequence[Keyed], error: Exception | None) -> Stored:
        assert self.arriving.wait(60)
        try:
            if error is not None:
                raise error
            return super().begin(files)()
        finally:
            self.under_way -= 1


class Puts:
    """What is stored, in its order; `broken` tells of which names nothing can be stored, and why."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.broken: dict[str, Exception] = {}
        self.happened = threading.Condition()
        put = PosixStore.put

        def told(store: PosixStore, key: str, *content: Any) -> int:
            name = key.rpartition("/")[2]
            with self.happened:
                self.names.append(name)
                self.happened.notify_all()
            if name in self.broken:
                raise self.broken[name]
            return put(store, key, *content)

        monkeypatch.setattr(PosixStore, "put", told)

    def wait_for(self, name: str) -> None:
        with self.happened:
            assert self.happened.wait_for(lambda: name in self.names, 60), self.names


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> Puts:
    return Puts(monkeypatch)


@pytest.fixture
def afar(tmp_path: Path) -> Iterator[Afar]:
    made = Afar(tmp_path)
    yield made
    made.arriving.set()


def saving(job: Jobs, root: Path, upload: Afar, **options: Any) -> Checkpointer:
    checkpointer = job().checkpointer(root, interval_steps=2, asynchronous=True, **options)
    checkpointer._shards._upload = upload
    return checkpointer


def test_the_metadata_is_stored_meanwhile_and_the_manifest_when_all_has_arrived(
    job: Jobs, tmp_path: Path, afar: Afar, puts: Puts
) -> None:
    with saving(job, tmp_path, afar) as checkpointer:
        for step in checkpointer.steps(3):
            if step == 3:
                puts.wait_for(".metadata")
                assert afar.under_way == 1
                assert not [name for name in puts.names if name.endswith((".distcp", "manifest.json"))]
                assert steps_of(tmp_path) == []
                afar.arriving.set()
    stored = [name for name in puts.names if name.endswith((".distcp", ".metadata", "manifest.json", "COMMITTED"))]
    assert stored[:4] == [".metadata", "__0_0.distcp", "manifest.json", "COMMITTED"]
    assert steps_of(tmp_path) == [2, 3]


def test_metadata_without_shards_is_no_checkpoint(job: Jobs, tmp_path: Path, afar: Afar, puts: Puts) -> None:
    afar.error = StorageUnavailableError("too far")
    with saving(job, tmp_path, afar) as checkpointer:
        for step in checkpointer.steps(5):
            if step == 3:
                puts.wait_for(".metadata")
                afar.arriving.set()
                afar.error = None
    assert steps_of(tmp_path) == [4, 5]
    assert puts.names.count("manifest.json") == 2


def test_without_its_metadata_a_save_fails_but_not_before_its_bytes_are_free(
    job: Jobs, tmp_path: Path, afar: Afar, puts: Puts
) -> None:
    puts.broken = {".metadata": StorageRefusedError("not here")}
    checkpointer = saving(job, tmp_path, afar)
    checkpointer.begin(1)
    threading.Timer(0.2, afar.arriving.set).start()
    with pytest.raises(CheckpointError, match="not here"):
        checkpointer.save_state()
    assert afar.arriving.is_set()
    assert (afar.under_way, steps_of(tmp_path)) == (0, [])
    puts.broken = {}
    assert checkpointer.save(2).step == 2
    checkpointer.close()


def test_what_happens_to_the_register_meanwhile_stays(job: Jobs, tmp_path: Path, afar: Afar, puts: Puts) -> None:
    job().run(tmp_path, 2)
    puts.names.clear()
    catalog = JobCatalog(open_store(str(tmp_path)))
    with saving(job, tmp_path, afar) as checkpointer:
        for step in checkpointer.steps(5):
            if step == 5:
                puts.wait_for(".metadata")
                catalog.pin(catalog.require().live()[0].location)
                afar.arriving.set()
    assert [(entry.step, entry.pinned) for entry in catalog.require().live()] == [(2, True), (4, False), (5, False)]


def test_storage_that_comes_back_before_the_shards_have_arrived_was_never_away(
    job: Jobs, tmp_path: Path, afar: Afar, puts: Puts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shards are tried for a minute, the metadata for seconds."""
    puts.broken = {".metadata": StorageUnavailableError("away")}
    looked = threading.Event()
    read = PosixStore.read_register

    def away(store: PosixStore, *arguments: Any) -> Any:
        if puts.broken:
            looked.set()
            raise StorageUnavailableError("away")
        return read(store, *arguments)

    checkpointer = saving(job, tmp_path, afar)
    checkpointer.begin(1)

    def come_back() -> None:
        assert looked.wait(60)
        puts.broken = {}
        afar.arriving.set()

    monkeypatch.setattr(PosixStore, "read_register", away)
    back = begin(come_back, "back")
    checkpointer.save_state()
    back.result()
    assert checkpointer.commit().step == 1
    assert steps_of(tmp_path) == [1]
    checkpointer.close()


def test_who_is_told_to_stop_does_not_wait_for_storage(
    job: Jobs, tmp_path: Path, afar: Afar, puts: Puts, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = saving(job, tmp_path, afar)
    checkpointer.begin(1)

    def stop(_: Sending) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sending, "wait", stop)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save_state()
    assert afar.under_way == 1


def test_the_time_of_an_upload_is_that_of_its_bytes(job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described: list[float] = []
    put = PosixStore.put

    def slow(store: PosixStore, key: str, *content: Any) -> int:
        if key.endswith(".metadata"):
            described.append(time.monotonic())
            time.sleep(0.05)
        return put(store, key, *content)

    monkeypatch.setattr(PosixStore, "put", slow)
    checkpointer = job().checkpointer(tmp_path)
    checkpointer.begin(1)
    began = time.monotonic()
    checkpointer.save_state()
    times = checkpointer.commit().times
    assert times is not None
    assert times.staged_seconds + times.uploaded_seconds <= described[0] - began
    checkpointer.close()


def test_a_save_stands_with_its_swap_and_its_mark_waits_for_nobody(job: Jobs, tmp_path: Path, puts: Puts) -> None:
    puts.broken = {"COMMITTED": StorageUnavailableError("away")}
    told: list[int] = []

    def hook(committed: Committed) -> None:
        puts.wait_for("COMMITTED")
        assert committed.step in steps_of(tmp_path)
        told.append(committed.step)

    with job().checkpointer(tmp_path, interval_steps=2, asynchronous=True) as checkpointer:
        checkpointer.on_commit(hook)
        for _ in checkpointer.steps(5):
            pass
    assert told == steps_of(tmp_path) == [2, 4, 5]
