"""What rank 0 does while shards are under way, and what of it counts when they do not arrive."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from everstep import Checkpointer
from everstep.catalog import JobCatalog, open_store
from everstep.catalog.store.posix import PosixStore
from everstep.catalog.store.threads import begin
from everstep.checkpoint.saving.uploading import DirectUpload, Keyed, Stored
from everstep.errors import CheckpointError, StorageUnavailableError

from .conftest import Job, steps_of

Jobs = Callable[..., Job]


class Afar(DirectUpload):
    """Stores beside whoever began, as the uploader's process does, once it may."""

    def __init__(self, root: Path) -> None:
        super().__init__(open_store(str(root)))
        self.arriving = threading.Event()
        self.under_way = 0
        self.error: Exception | None = None

    def begin(self, files: Sequence[Keyed]) -> Stored:
        self.under_way += 1
        error = self.error
        stored: Future[int] = begin(lambda: self._arrive(files, error), "afar")
        return stored.result

    def _arrive(self, files: Sequence[Keyed], error: Exception | None) -> int:
        assert self.arriving.wait(60)
        try:
            if error is not None:
                raise error
            return super().begin(files)()
        finally:
            self.under_way -= 1


class Puts:
    """What is stored, in its order; `broken` tells of which names nothing can be stored."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.broken: set[str] = set()
        self.happened = threading.Condition()
        put = PosixStore.put

        def told(store: PosixStore, key: str, *content: Any) -> int:
            name = key.rpartition("/")[2]
            with self.happened:
                self.names.append(name)
                self.happened.notify_all()
            if name in self.broken:
                raise StorageUnavailableError(f"{key}: broken")
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
    puts.broken = {".metadata"}
    checkpointer = saving(job, tmp_path, afar)
    checkpointer.begin(1)
    threading.Timer(0.2, afar.arriving.set).start()
    with pytest.raises(CheckpointError, match="broken"):
        checkpointer.save_state()
    assert afar.arriving.is_set()
    assert (afar.under_way, steps_of(tmp_path)) == (0, [])
    puts.broken = set()
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


def test_a_save_stands_with_its_swap_whatever_becomes_of_its_mark(job: Jobs, tmp_path: Path, puts: Puts) -> None:
    puts.broken = {"COMMITTED"}
    marked: list[bool] = []
    with job().checkpointer(tmp_path, interval_steps=2, asynchronous=True) as checkpointer:
        checkpointer.on_commit(lambda _: marked.append("COMMITTED" in puts.names))
        for step in checkpointer.steps(3):
            if step == 3:
                puts.wait_for("COMMITTED")
                assert marked == [False]
    assert steps_of(tmp_path) == [2, 3]
