"""What only a directory can get wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from everstep.catalog.store import SwapUnanswered, Versioned, posix
from everstep.catalog.store.posix import KEEP_VERSIONS, PosixStore
from everstep.errors import InvalidOperationError, StorageUnavailableError

KEY = "catalog.json"


def chain(store: PosixStore, length: int) -> list[str]:
    tokens: list[str] = []
    for number in range(length):
        tokens.append(store.swap_register(KEY, b"%d" % number, tokens[-1] if tokens else None))
    return tokens


def test_old_versions_are_pruned(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    chain(store, KEEP_VERSIONS + 20)
    assert len(list((tmp_path / "catalog.d").iterdir())) == KEEP_VERSIONS


@pytest.mark.parametrize("later", [KEEP_VERSIONS + 1, KEEP_VERSIONS + 10], ids=["just pruned", "long pruned"])
def test_a_writer_that_comes_after_its_number_was_pruned_believes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: int
) -> None:
    """It read version 3, slept until 4 had been written and pruned, and its link then finds a free name."""
    store, late = PosixStore(tmp_path), PosixStore(tmp_path)
    tokens = chain(store, 3)
    real = PosixStore._link

    def slow_link(temporary: Path, target: Path) -> None:
        monkeypatch.undo()
        last = tokens[-1]
        for number in range(later):
            last = store.swap_register(KEY, b"later %d" % number, last)
        real(temporary, target)

    monkeypatch.setattr(PosixStore, "_link", staticmethod(slow_link))
    with pytest.raises(SwapUnanswered, match="pruned"):
        late.swap_register(KEY, b"zombie", tokens[-1])
    found = store.read_register(KEY)
    assert isinstance(found, Versioned)
    assert found.body == b"later %d" % (later - 1)
    assert not any(path.read_bytes() == b"zombie" for path in (tmp_path / "catalog.d").iterdir())


def test_keys_stay_below_the_root(tmp_path: Path) -> None:
    store = PosixStore(tmp_path / "root")
    for key in ("../x", "/etc/passwd", "checkpoints/../../x", ""):
        with pytest.raises(InvalidOperationError):
            store.put(key, b"x")


def test_a_full_disk_is_said_and_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PosixStore(tmp_path)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(StorageUnavailableError, match="No space left on device"):
        store.put("checkpoints/a/x", b"x")
    assert list(store.list("")) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_every_new_folder_is_durable_before_a_write_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(posix, "_sync_directory", synced.append)
    store = PosixStore(tmp_path / "ns" / "job")
    store.put("checkpoints/a/x", b"x")
    root = tmp_path / "ns" / "job"
    assert {tmp_path, tmp_path / "ns", root, root / "checkpoints", root / "checkpoints" / "a"} <= set(synced)
    synced.clear()
    store.swap_register(KEY, b"x", None)
    assert {root, root / "catalog.d"} <= set(synced)


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PosixStore(tmp_path)
    store.put("checkpoints/a/x", b"x")
    chain(store, 1)

    def stale(path: object) -> None:
        raise OSError(116, "Stale file handle", str(path))

    monkeypatch.setattr("os.scandir", stale)
    monkeypatch.setattr("os.listdir", stale)
    with pytest.raises(StorageUnavailableError, match="Stale"):
        list(store.list("checkpoints/"))
    with pytest.raises(StorageUnavailableError, match="Stale"):
        store.read_register(KEY)
