"""The trainer's side of the uploader: objects in, futures out.

The process is started by a thread that lives as long as it does: the kernel's parent-death signal goes off when the
thread that started a process ends, not the process, and the signals blocked in that thread are blocked in the new
process from its first instruction.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import send_handle
from pathlib import Path

from everstep.catalog.store import S3Access
from everstep.errors import InvalidOperationError, UploaderDiedError
from everstep.transfer.memory import Segment, SharedBuffer
from everstep.transfer.protocol import Alive, Done, Finish, Forget, Open, Put, Share, Uploaded

QUEUE = 256
"""Objects that may be submitted and not yet stored; `submit` waits beyond them."""
OBJECTS = 8
"""Objects uploaded at a time: a save's files are this many, or a multiple, and one request each."""
PATIENCE = 60.0
"""Seconds without any success after which an object is given up."""
SILENCE = 120.0
"""Seconds without any sign of life after which the process counts as frozen, and is killed."""
_SIGNS = 12
"""Signs of life in that time. So many waits must end in vain: a trainer that was itself stopped then kills nobody."""
_START = """
import sys
sys.path.append(sys.argv[1])
from everstep.transfer.worker import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""


class Uploader:
    """Uploads from shared memory in a process of its own. Safe to use from several threads.

    A process that died is noticed at once, one that is frozen after `silence` seconds, which kill it: the pending
    futures raise UploaderDiedError, and the next `start` begins anew.
    """

    def __init__(
        self,
        store_uri: str,
        access: S3Access | None = None,
        *,
        queue: int = QUEUE,
        objects: int = OBJECTS,
        patience: float = PATIENCE,
        silence: float = SILENCE,
    ) -> None:
        self._opening = Open(store_uri, replace(access or S3Access(), patience=patience), objects, silence / _SIGNS)
        self._room = threading.BoundedSemaphore(queue)
        self._lock = threading.Lock()
        self._link: _Link | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, while it lives."""
        link = self._link
        return link.process.pid if link and link.alive else None

    def start(self) -> None:
        """Start the process unless it lives. Returns before it is ready, about half a second."""
        with self._lock:
            if self._link is None or not self._link.alive:
                self._link = _Link(self._opening)

    def submit(self, key: str, segment: Segment, sums: Sequence[int] = ()) -> Future[Uploaded]:
        """Upload `segment` as the object `key`. Its bytes must not change until the future is done.

        `sums` as in `Store.put`. Waits while the queue is full. The future raises StorageUnavailableError or
        StorageRefusedError as the store does, or UploaderDiedError. Raises InvalidOperationError before `start` and for
        a buffer that was closed, UploaderDiedError where the process has ended since.
        """
        link = self._link
        if link is None:
            raise InvalidOperationError(f"{key}: the uploader was not started")
        self._room.acquire()
        try:
            future = link.put(key, segment, tuple(int(each) for each in sums))
        except BaseException:
            self._room.release()
            raise
        future.add_done_callback(lambda _: self._room.release())
        return future

    def close(self, deadline: float = 30.0) -> None:
        """Wait up to `deadline` seconds for what was submitted, then end the process."""
        with self._lock:
            if self._link is not None:
                self._link.close(deadline)
                self._link = None


class _Link:
    """One process, from its start to its end."""

    def __init__(self, opening: Open) -> None:
        self._pending: dict[int, tuple[str, Future[Uploaded]]] = {}
        self._shared: dict[str, weakref.ref[SharedBuffer]] = {}
        self._lock = threading.Lock()
        self._count = 0
        self._owner = os.getpid()
        self._over: str | None = None
        self._sending = threading.Lock()
        started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._live, args=(opening, started), name="uploader", daemon=True)
        self._thread.start()
        started.wait()
        if self._failure is not None:
            raise UploaderDiedError(f"the uploader could not be started: {self._failure}") from self._failure

    @property
    def alive(self) -> bool:
        return self._over is None and self._owner == os.getpid()

    def put(self, key: str, segment: Segment, sums: tuple[int, ...]) -> Future[Uploaded]:
        future: Future[Uploaded] = Future()
        future.set_running_or_notify_cancel()
        buffer = segment.buffer
        if buffer.closed:
            raise InvalidOperationError(f"{key}: its buffer is closed")
        with self._lock:
            if not self.alive:
                raise UploaderDiedError(f"{key}: {self._over or 'the uploader belongs to another process'}")
            self._count += 1
            number = self._count
            self._pending[number] = (key, future)
        try:
            with self._sending:
                self._forget_closed()
                if buffer.id not in self._shared:
                    self._connection.send(Share(buffer.id, buffer.size))
                    send_handle(self._connection, buffer.descriptor, self.process.pid)
                    self._shared[buffer.id] = weakref.ref(buffer)
                self._connection.send(Put(number, key, buffer.id, segment.offset, segment.length, sums))
        except OSError:
            self.process.kill()  # most likely it is dead; if not, it waits for the rest of a message
            self._thread.join()  # the receiver has failed the future
        return future

    def _forget_closed(self) -> None:
        for name, reference in list(self._shared.items()):
            buffer = reference()
            if buffer is None or buffer.closed:
                self._connection.send(Forget(name))
                del self._shared[name]

    def close(self, deadline: float) -> None:
        if self._owner != os.getpid():
            return
        finishing = threading.Thread(target=self._finish, name="uploader-end", daemon=True)
        finishing.start()  # a process that does not read any more would hold up whoever writes
        self._thread.join(deadline)
        if self._thread.is_alive():
            self.process.kill()
            self._thread.join()

    def _finish(self) -> None:
        with contextlib.suppress(OSError), self._sending:
            self._connection.send(Finish())

    def _live(self, opening: Open, started: threading.Event) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        try:
            self.process, self._connection = _spawn(opening)
        except OSError as error:
            self._failure = error
            return
        finally:
            started.set()
        how = ""
        try:
            how = self._receive(opening.sign)
        finally:
            self.process.kill()
            self._end(self.process.wait(), how)

    def _receive(self, sign: float) -> str:
        """Until the process is gone, or shows no life, which is told. A fork of the trainer may hold the other end
        open, so its end is no sure sign."""
        silent = 0
        with _process_handles(self.process.pid) as dead:
            while silent < _SIGNS:
                ready = wait([self._connection, *dead], sign)
                if not ready:
                    silent += 1
                    continue
                silent = 0
                try:
                    if self._connection not in ready:
                        return ""
                    message = self._connection.recv()
                except (EOFError, OSError):
                    return ""
                if isinstance(message, Alive):
                    continue
                assert isinstance(message, Done)
                with self._lock:
                    _, future = self._pending.pop(message.number)
                if isinstance(message.result, Uploaded):
                    future.set_result(message.result)
                else:
                    future.set_exception(message.result)
        return f"gave no sign of life for {_SIGNS * sign:.0f} s and was killed"

    def _end(self, code: int, how: str) -> None:
        how = how or (f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}")
        with self._lock:
            self._over = f"the uploader {how}"
            pending, self._pending = self._pending, {}
        # A sender that waits for a reader ends by this; to close under its hands would let it write to another file.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)
        with self._sending:
            self._connection.close()
        for key, future in pending.values():
            future.set_exception(UploaderDiedError(f"{key}: {self._over} before the object was stored"))


def _spawn(opening: Open) -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = socket.socketpair()
    try:
        root = str(Path(__file__).parents[2])
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, root, str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    connection = Connection(ours.detach())
    with contextlib.suppress(BrokenPipeError):  # it is dead already: the receiver will find it so
        connection.send(opening)
    return process, connection


@contextlib.contextmanager
def _process_handles(pid: int) -> Iterator[list[int]]:
    """What becomes readable when the process ends, where the system has such a thing."""
    if sys.platform != "linux":
        yield []
        return
    handle = os.pidfd_open(pid)
    try:
        yield [handle]
    finally:
        os.close(handle)
