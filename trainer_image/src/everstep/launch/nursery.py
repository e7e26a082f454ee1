"""Processes that are forked from one which has imported what they need: an import of torch and of what goes with it
takes seconds, each time that a rank starts.

A process is forked twice, and the one in between ends: so it is given to the nearest ancestor that asked for orphans,
which waits for it as for a child of its own. Imports no torch.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TextIO

_PR_SET_CHILD_SUBREAPER = 36
_HANDLED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
"""Signals of which this process may have another opinion than a new one."""
_MOST = 1 << 20


class Forked:
    """A process as `subprocess.Popen` shows it."""

    def __init__(self, pid: int, args: Sequence[str]) -> None:
        self.pid = pid
        self.args = args
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            with suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
            time.sleep(0.02)
        return self.returncode or 0

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """A process that forks on request. Whoever asks is the parent of what it gets."""

    def __init__(self, connection: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._connection = connection
        self._process = process

    @classmethod
    def start(cls, modules: Sequence[str], environment: Mapping[str, str]) -> Nursery:
        """A new process, for one that has not imported the modules itself."""
        adopt_orphans()
        ours, theirs = _pair()
        command = [sys.executable, "-m", __name__, str(theirs.fileno()), *modules]
        process = subprocess.Popen(command, env=dict(environment), pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()
        return cls(ours, process)

    @classmethod
    def split_off(cls, modules: Sequence[str]) -> Nursery:
        """A fork of this process, which imports the modules besides. This process must have no other thread."""
        adopt_orphans()
        ours, theirs = _pair()
        if os.fork() == 0:
            ours.close()
            serve_and_do(theirs, modules)
            raise SystemExit
        theirs.close()
        return cls(ours)

    def fork(
        self, main: str, args: Sequence[str], environment: Mapping[str, str], cwd: str, outputs: Sequence[int]
    ) -> Forked:
        """A process that calls `main` (module:function), which finds `args` in `sys.argv`. `outputs`: the descriptors
        of its standard output and error. Raises OSError where the process that forks has ended."""
        request = json.dumps({"main": main, "args": list(args), "environment": dict(environment), "cwd": cwd}).encode()
        if len(request) > _MOST:
            raise OSError(f"{len(request)} bytes of arguments and environment")
        socket.send_fds(self._connection, [request], list(outputs))
        answer = self._connection.recv(64)
        if not answer:
            raise OSError("the process that forks has ended")
        return Forked(int(answer), args)

    def close(self) -> None:
        self._connection.close()
        if self._process is not None:
            self._process.wait()


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def adopt_orphans() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def serve_and_do(connection: socket.socket, modules: Sequence[str]) -> None:
    """Import the modules, then fork what is asked for until nobody can ask. Returns in each forked process as well,
    when what it was made for is done."""
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - whoever needs it imports it, and says what is wrong
            print(f"everstep: {name} was not imported ahead: {type(error).__name__}: {error}", file=sys.stderr)
    gc.collect()
    gc.freeze()  # what is shared stays shared
    todo = _serve(connection)
    if todo is not None:
        signal.signal(signal.SIGINT, interrupt)
        todo()


def _serve(connection: socket.socket) -> Callable[[], None] | None:
    """Returns in each forked process, with what it is to do."""
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(connection, _MOST, 2)
        except ConnectionError:
            return None
        if not message:
            return None
        between = os.fork()
        if between:
            os.waitpid(between, 0)
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        middle = os.getpid()
        pid = os.fork()
        if pid:
            connection.send(str(pid).encode())
            os._exit(0)
        connection.close()
        while os.getppid() == middle:  # it asks who its parent is, to end with it
            time.sleep(0.001)
        return _begin(json.loads(message), descriptors)


def _begin(request: dict[str, Any], descriptors: list[int]) -> Callable[[], None]:
    """Become a process as `python -u` would have made it."""
    os.setsid()
    for number in _HANDLED:
        signal.signal(number, signal.SIG_DFL)
    for target, descriptor in zip((1, 2), descriptors, strict=False):
        os.dup2(descriptor, target)
    for descriptor in descriptors:
        os.close(descriptor)
    sys.stdout, sys.stderr = _unbuffered(1, sys.stdout), _unbuffered(2, sys.stderr)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    if not sys.flags.safe_path:
        sys.path[0] = request["cwd"]
    _draw_anew()
    module, _, function = request["main"].partition(":")
    main: Callable[[], None] = getattr(importlib.import_module(module), function)
    sys.argv = [module, *request["args"]]
    return main


def _draw_anew() -> None:
    """Random numbers of its own, as a new process has them. Python's generator sees to itself."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        numpy.random.seed()
    if torch is not None:
        torch.default_generator.seed()


def _unbuffered(descriptor: int, like: TextIO) -> TextIO:
    raw = open(descriptor, "wb", 0, closefd=False)  # noqa: SIM115 - for the life of the process
    return io.TextIOWrapper(raw, encoding=like.encoding, errors=like.errors, write_through=True)


if __name__ == "__main__":
    serve_and_do(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
