"""Processes that have imported what costs seconds already: those that tests start are forked from them.

An import of torch and what a rank needs takes four CPU seconds, and a gang of two makes three of them; an operator's
takes more than one: most of what their tests would cost. What runs in a forked process is what its command runs, in a
process, with an environment and a folder of its own. EVERSTEP_COLD=1 starts all of them as users do; so do the tests in
pods.

A process is forked twice, and the one in between ends: so it is given to the nearest ancestor that asked for orphans,
which waits for it as for a child of its own.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

COLD = bool(os.environ.get("EVERSTEP_COLD"))
_PR_SET_CHILD_SUBREAPER = 36
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
        assert self.returncode is not None
        return self.returncode

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
        """For a process that has not imported the modules itself."""
        adopt_orphans()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-u", "-m", __name__, str(theirs.fileno()), *modules]
        process = subprocess.Popen(command, env=dict(environment), pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()
        return cls(ours, process)

    def fork(
        self, main: str, args: Sequence[str], environment: Mapping[str, str], cwd: str, outputs: Sequence[int]
    ) -> Forked:
        """`main`: module:function, which finds `args` in `sys.argv`."""
        request = json.dumps({"main": main, "args": list(args), "environment": dict(environment), "cwd": cwd}).encode()
        assert len(request) < _MOST
        socket.send_fds(self._connection, [request], list(outputs))
        answer = self._connection.recv(64)
        assert answer, "the process that forks has ended"
        return Forked(int(answer), args)

    def close(self) -> None:
        self._connection.close()
        if self._process is not None:
            self._process.wait()


def adopt_orphans() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def serve(connection: socket.socket) -> Callable[[], None] | None:
    """Fork what is asked for. Returns in each forked process, with what it is to do; None once nobody can ask."""
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
    """Become a process as exec would have made it."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in zip((1, 2), descriptors, strict=False):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()  # Python's own generator sees to itself
    module, _, function = request["main"].partition(":")
    main: Callable[[], None] = getattr(importlib.import_module(module), function)
    sys.argv = [module, *request["args"]]
    return main


def serve_and_do(connection: socket.socket) -> None:
    todo = serve(connection)
    if todo is not None:
        todo()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in sys.argv[2:]:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a thread does not survive a fork, and what it holds stays held"
    serve_and_do(socket.socket(fileno=int(sys.argv[1])))
