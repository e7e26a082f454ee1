"""The uploader's own process. It only writes objects: whatever happens to it, nothing can be committed by it.

It ends with its trainer, by three ways that fail independently: the kernel's parent-death signal, a watch on the
parent's process, and the end of the connection. SIGTERM and SIGINT are the trainer's to answer: a planned stop saves.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle

from everstep.catalog.store import Store, open_store
from everstep.errors import CheckpointError, StorageUnavailableError
from everstep.transfer.protocol import Alive, Done, Finish, Forget, Open, Put, Share, Uploaded

_PR_SET_PDEATHSIG = 1


def main(descriptor: int, parent: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    connection = Connection(descriptor)
    try:
        opening = connection.recv()
        assert isinstance(opening, Open)
        Worker(connection, opening).run()
    except EOFError:
        os._exit(1)  # no trainer: uploads in other threads are not waited for


class Worker:
    def __init__(self, connection: Connection, opening: Open) -> None:
        self._connection = connection
        self._opening = opening
        self._maps: dict[str, mmap.mmap] = {}
        self._answering = threading.Lock()
        self._store: Store | None = None
        self._opened = threading.Lock()

    def run(self) -> None:
        """Until the trainer says that it was all. Raises EOFError where the trainer is gone."""
        threading.Thread(target=self._show_life, name="life", daemon=True).start()
        with ThreadPoolExecutor(self._opening.objects, thread_name_prefix="object") as pool:
            while True:
                match self._connection.recv():
                    case Share(buffer, size):
                        shared = recv_handle(self._connection)
                        self._maps[buffer] = mmap.mmap(shared, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
                        os.close(shared)
                    case Forget(buffer):
                        del self._maps[buffer]
                    case Put() as put:
                        pool.submit(self._put, put, self._maps[put.buffer])
                    case Finish():
                        return

    def _show_life(self) -> None:
        with contextlib.suppress(OSError):  # the trainer is gone: others see to that
            while True:
                with self._answering:
                    self._connection.send(Alive())
                time.sleep(self._opening.sign)

    def _put(self, put: Put, memory: mmap.mmap) -> None:
        result: Uploaded | Exception
        try:
            store = self._open()
            with memoryview(memory) as whole, whole[put.offset : put.offset + put.length] as body:
                retries = store.put(put.key, body, put.sums)
            result = Uploaded(put.key, put.length, retries, time.monotonic())
        except CheckpointError as error:
            result = error
        except Exception as error:  # noqa: BLE001  it is told to the trainer, whose save fails
            result = StorageUnavailableError(f"{self._opening.uri}/{put.key}: {type(error).__name__}: {error}")
        with self._answering:
            self._connection.send(Done(put.number, result))

    def _open(self) -> Store:
        with self._opened:
            if self._store is None:
                self._store = open_store(self._opening.uri, self._opening.access)
            return self._store


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        watched = os.pidfd_open(parent)  # raises ProcessLookupError where the parent died before
        threading.Thread(target=_watch, args=(watched,), name="parent", daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _watch(parent: int) -> None:
    select.select([parent], [], [])
    os._exit(1)
