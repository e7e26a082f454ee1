"""The uploader's process over a real S3 server: what is left when it, its trainer or the server is taken away."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dev.s3 import S3Endpoint, S3Server
from everstep.catalog import Store, open_store
from everstep.catalog.store import s3_objects
from everstep.catalog.sums import block_sums
from everstep.errors import StorageUnavailableError, UploaderDiedError
from everstep.transfer import Segment, SharedBuffer, Uploader
from tests.storage.conftest import access_of
from tests.support.weather import Kind, Request, Weather

MEGABYTE = 1 << 20
SIZE = s3_objects.WHOLE + 32 * MEGABYTE
"""Is stored in parts."""
KEY = "checkpoints/a/x"


@pytest.fixture(scope="module")
def buffer() -> Iterator[SharedBuffer]:
    buffer = SharedBuffer(SIZE)
    buffer.view[:] = os.urandom(MEGABYTE) * (SIZE // MEGABYTE)
    yield buffer
    buffer.close()


@pytest.fixture
def uri(s3_server: S3Endpoint) -> str:
    return f"s3://{s3_server.make_bucket('uploader')}/{secrets.token_hex(4)}"


def sweep(store: Store) -> int:
    return store.abort_uploads("", datetime.now(UTC) + timedelta(days=1))


def gone(pid: int, seconds: float) -> bool:
    """A process that the test did not start is gone, or a zombie that waits for its parent."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def resident(pid: int) -> int:
    """Bytes that are the process's own: shared buffers do not count."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(fields[name].split()[0]) << 10 for name in ("Private_Dirty", "Private_Clean"))


def held(request: Request) -> Kind | None:
    return "no answer" if request.is_part else None


def test_large_segments_arrive_and_the_uploaders_memory_does_not_grow(
    s3_server: S3Endpoint, uri: str, buffer: SharedBuffer
) -> None:
    uploader = Uploader(uri, access_of(s3_server))
    uploader.start()
    sums = block_sums(buffer.view)
    uploader.submit(KEY, Segment(buffer, 0, MEGABYTE)).result(60)
    assert uploader.pid is not None
    before, most = resident(uploader.pid), 0
    futures = [uploader.submit(f"{KEY}{n}", Segment(buffer, 0, SIZE), sums) for n in range(2)]
    while not all(future.done() for future in futures):
        most = max(most, resident(uploader.pid))
        with contextlib.suppress(TimeoutError):
            futures[-1].exception(0.2)
    assert [future.result().bytes for future in futures] == [SIZE] * 2
    assert most - before < 16 * MEGABYTE
    uploader.close()
    store = open_store(uri, access_of(s3_server))
    assert {info.size for info in store.list(f"{KEY}0")} == {SIZE}
    assert store.get(f"{KEY}1") == buffer.view


def test_a_killed_uploader_leaves_no_object_and_what_it_began_is_swept(
    s3_server: S3Endpoint, uri: str, buffer: SharedBuffer
) -> None:
    straight = open_store(uri, access_of(s3_server))
    with Weather(s3_server.url, held) as weather:
        uploader = Uploader(uri, replace(access_of(s3_server), endpoint=weather.url))
        uploader.start()
        pending = [uploader.submit(f"{KEY}{n}", Segment(buffer, 0, SIZE)) for n in range(2)]
        wait_for(lambda: len(weather.struck) > 0)
        assert uploader.pid is not None
        began = time.monotonic()
        os.kill(uploader.pid, signal.SIGKILL)
        for future in pending:
            with pytest.raises(UploaderDiedError, match="SIGKILL"):
                future.result(5)
        assert time.monotonic() - began < 5
        weather.strike = lambda _: None
        uploader.start()
        uploader.submit("checkpoints/b/x", Segment(buffer, 0, MEGABYTE)).result(60)
        uploader.close()
    assert [info.key for info in straight.list("checkpoints/")] == ["checkpoints/b/x"]
    assert sweep(straight) >= 1
    assert sweep(straight) == 0


TRAINER = """
import os, sys, threading, time
from everstep.catalog import S3Access
from everstep.transfer import Segment, SharedBuffer, Uploader

def start():
    global uploader
    uploader = Uploader(sys.argv[1], S3Access(*sys.argv[2:6]))
    uploader.start()

starting = threading.Thread(target=start)  # a thread that ends: the uploader must not end with it
starting.start()
starting.join()
buffer = SharedBuffer(160 << 20)
uploader.submit("checkpoints/a/first", Segment(buffer, 0, 10)).result(60)
uploader.submit("checkpoints/a/x", Segment(buffer, 0, buffer.size))
if not os.fork():
    time.sleep(600)  # as a data worker does: it holds copies of all descriptors
print(uploader.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_an_uploader_dies_with_its_trainer(s3_server: S3Endpoint, uri: str, stopped: bool) -> None:
    access = access_of(s3_server)
    with Weather(s3_server.url, held) as weather:
        command = [sys.executable, "-c", TRAINER, uri, weather.url, access.region, access.access_key, access.secret_key]
        trainer = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, start_new_session=True)
        try:
            assert trainer.stdout is not None
            pid = int(trainer.stdout.readline())
            wait_for(lambda: len(weather.struck) > 0)
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
            assert not gone(pid, 1)
            if stopped:
                os.kill(pid, signal.SIGSTOP)
            trainer.kill()
            trainer.wait(10)
            assert gone(pid, 3)
        finally:
            os.killpg(trainer.pid, signal.SIGKILL)
    store = open_store(uri, access)
    assert [info.key for info in store.list("")] == ["checkpoints/a/first"]
    sweep(store)
    assert sweep(store) == 0


def test_a_server_that_stopped_answering_is_an_error_and_later_is_none(tmp_path: Path, buffer: SharedBuffer) -> None:
    server = S3Server(tmp_path / "s3")
    endpoint = server.start()
    try:
        access = replace(access_of(endpoint), read_timeout=5.0, attempts=2)
        uploader = Uploader(f"s3://{endpoint.make_bucket()}/x", access, patience=3.0)
        uploader.start()
        uploader.submit(KEY, Segment(buffer, 0, MEGABYTE)).result(60)
        record = server.processes.record("s3")
        assert record is not None
        pid = record.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            pending = [uploader.submit(f"{KEY}{n}", Segment(buffer, 0, SIZE >> n)) for n in range(3)]
            for future in pending:
                with pytest.raises(StorageUnavailableError, match=endpoint.url):
                    future.result(60)
            assert time.monotonic() - began < 60
        finally:
            os.kill(pid, signal.SIGCONT)
        assert uploader.submit(f"{KEY}9", Segment(buffer, 0, MEGABYTE)).result(60).bytes == MEGABYTE
        uploader.close()
    finally:
        server.remove()


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
