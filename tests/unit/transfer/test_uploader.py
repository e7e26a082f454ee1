"""The uploader's process: what it stores, how it ends, and that nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from everstep.catalog import open_store
from everstep.catalog.sums import block_sums
from everstep.errors import InvalidOperationError, StorageUnavailableError, UploaderDiedError
from everstep.transfer import Segment, SharedBuffer, Uploader

pytestmark = pytest.mark.slow  # each starts a process

MEGABYTE = 1 << 20


@pytest.fixture
def buffer() -> Iterator[SharedBuffer]:
    buffer = SharedBuffer(4 * MEGABYTE)
    buffer.view[:] = os.urandom(4 * MEGABYTE)
    yield buffer
    buffer.close()


@pytest.fixture
def uploader(tmp_path: Path) -> Iterator[Uploader]:
    uploader = Uploader(str(tmp_path / "root"))
    uploader.start()
    yield uploader
    uploader.close(10)


def test_segments_become_objects(uploader: Uploader, buffer: SharedBuffer, tmp_path: Path) -> None:
    segments = {f"checkpoints/a/{i}": Segment(buffer, i * 1000, MEGABYTE + i) for i in range(8)}
    futures = [uploader.submit(key, segment, block_sums(segment.view)) for key, segment in segments.items()]
    assert [future.result(30).key for future in futures] == list(segments)
    store = open_store(str(tmp_path / "root"))
    assert all(store.get(key) == segment.view for key, segment in segments.items())


def test_memory_is_shared_not_copied(uploader: Uploader, buffer: SharedBuffer, tmp_path: Path) -> None:
    uploader.submit("checkpoints/a/1", Segment(buffer, 0, 5)).result(30)
    buffer.view[:5] = b"later"
    uploader.submit("checkpoints/a/2", Segment(buffer, 0, 5)).result(30)
    assert open_store(str(tmp_path / "root")).get("checkpoints/a/2") == b"later"


def test_a_killed_uploader_is_an_error_at_once_and_the_next_start_begins_anew(
    uploader: Uploader, buffer: SharedBuffer, tmp_path: Path
) -> None:
    uploader.submit("checkpoints/a/1", Segment(buffer, 0, 5)).result(30)
    first = uploader.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    pending = uploader.submit("checkpoints/a/2", Segment(buffer, 0, 5))
    os.kill(first, signal.SIGKILL)
    with pytest.raises(UploaderDiedError, match=r"checkpoints/a/2.*SIGKILL"):
        pending.result(5)
    with pytest.raises(UploaderDiedError):
        uploader.submit("checkpoints/a/3", Segment(buffer, 0, 5))
    uploader.start()
    assert uploader.pid not in (None, first)
    assert uploader.submit("checkpoints/a/2", Segment(buffer, 0, 5)).result(30).bytes == 5


@pytest.mark.slow
def test_a_frozen_uploader_does_not_hold_up_a_save_for_ever(buffer: SharedBuffer, tmp_path: Path) -> None:
    uploader = Uploader(str(tmp_path / "root"), silence=5)
    uploader.start()
    uploader.submit("checkpoints/a/1", Segment(buffer, 0, 5)).result(30)
    time.sleep(7)  # idle for longer than that, and alive
    frozen = uploader.pid
    assert frozen is not None
    os.kill(frozen, signal.SIGSTOP)
    pending = uploader.submit("checkpoints/a/2", Segment(buffer, 0, 5))
    with pytest.raises(UploaderDiedError, match=r"checkpoints/a/2.*no sign of life"):
        pending.result(60)
    uploader.start()
    assert uploader.pid not in (None, frozen)
    assert uploader.submit("checkpoints/a/2", Segment(buffer, 0, 5)).result(30).bytes == 5
    uploader.close(10)


def test_what_storage_refuses_is_the_futures_error(uploader: Uploader, buffer: SharedBuffer, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir(exist_ok=True)
    (tmp_path / "root" / "checkpoints").write_bytes(b"a file where a folder belongs")
    with pytest.raises(StorageUnavailableError, match="checkpoints"):
        uploader.submit("checkpoints/a/1", Segment(buffer, 0, 5)).result(30)


def test_a_segment_lies_in_its_buffer(buffer: SharedBuffer) -> None:
    with pytest.raises(InvalidOperationError, match="4194304"):
        Segment(buffer, MEGABYTE, 4 * MEGABYTE)


def test_closing_waits_for_what_was_submitted(buffer: SharedBuffer, tmp_path: Path) -> None:
    uploader = Uploader(str(tmp_path / "root"))
    uploader.start()
    futures = [uploader.submit(f"checkpoints/a/{i}", Segment(buffer, 0, MEGABYTE)) for i in range(20)]
    uploader.close(30)
    assert all(future.done() and future.exception() is None for future in futures)
    assert uploader.pid is None


def test_the_uploader_imports_no_torch(uploader: Uploader, buffer: SharedBuffer) -> None:
    uploader.submit("checkpoints/a/1", Segment(buffer, 0, 5)).result(30)
    loaded = Path(f"/proc/{uploader.pid}/maps").read_text()
    assert "_awscrt" in loaded
    assert not any(name in loaded for name in ("libtorch", "numpy"))


def test_the_queue_is_bounded(buffer: SharedBuffer, tmp_path: Path) -> None:
    uploader = Uploader(str(tmp_path / "root"), queue=2)
    uploader.start()
    uploader.submit("checkpoints/a/0", Segment(buffer, 0, 5)).result(30)
    assert uploader.pid is not None
    os.kill(uploader.pid, signal.SIGSTOP)
    for number in (1, 2):
        uploader.submit(f"checkpoints/a/{number}", Segment(buffer, 0, 5))
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(uploader.submit, "checkpoints/a/3", Segment(buffer, 0, 5))
        with pytest.raises(TimeoutError):
            third.result(0.5)
        os.kill(uploader.pid, signal.SIGCONT)
        assert third.result(30).result(30).key == "checkpoints/a/3"
    uploader.close()


def test_a_closed_buffer_is_let_go_by_both(uploader: Uploader) -> None:
    first, second = SharedBuffer(8 * MEGABYTE), SharedBuffer(8 * MEGABYTE)
    uploader.submit("checkpoints/a/1", Segment(first, 0, 8 * MEGABYTE)).result(30)
    first.close()
    uploader.submit("checkpoints/a/2", Segment(second, 0, 8 * MEGABYTE)).result(30)
    for process in (os.getpid(), uploader.pid):
        assert Path(f"/proc/{process}/maps").read_text().count("memfd:everstep") == 1
    second.close()


def test_a_buffer_that_is_looked_at_goes_with_the_last_view() -> None:
    buffer = SharedBuffer(MEGABYTE)
    view = buffer.view[:10]
    view[:] = b"0123456789"
    buffer.close()
    assert bytes(view) == b"0123456789"
    assert buffer.closed


def test_closing_gives_up_at_its_deadline(buffer: SharedBuffer, tmp_path: Path) -> None:
    uploader = Uploader(str(tmp_path / "root"))
    uploader.start()
    uploader.submit("checkpoints/a/0", Segment(buffer, 0, 5)).result(30)
    assert uploader.pid is not None
    os.kill(uploader.pid, signal.SIGSTOP)
    pending = uploader.submit("checkpoints/a/1", Segment(buffer, 0, 5))
    began = time.monotonic()
    uploader.close(0.5)
    assert time.monotonic() - began < 5
    with pytest.raises(UploaderDiedError):
        pending.result(0)


def test_a_closed_buffer_is_not_uploaded(uploader: Uploader) -> None:
    buffer = SharedBuffer(MEGABYTE)
    segment = Segment(buffer, 0, 5)
    buffer.close()
    with pytest.raises(InvalidOperationError, match="checkpoints/a/1"):
        uploader.submit("checkpoints/a/1", segment)


def test_closing_does_not_wait_for_a_process_that_reads_no_more(buffer: SharedBuffer, tmp_path: Path) -> None:
    uploader = Uploader(str(tmp_path / "root"))
    uploader.start()
    uploader.submit("checkpoints/a/0", Segment(buffer, 0, 5)).result(30)
    assert uploader.pid is not None
    os.kill(uploader.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(uploader.submit, "checkpoints/a/1", Segment(buffer, 0, 5), range(10**6))
        with pytest.raises(TimeoutError):
            stuck.result(0.5)
        uploader.close(0.5)
        with pytest.raises(UploaderDiedError):
            stuck.result(10).result(10)
