"""Processes that are forked from one which has imported what they need: an import of torch and of what goes with it
takes seconds, each time that a rank starts.

A process is forked twice, and the one in between ends: so it is given to the nearest ancestor that asked for orphans,
which waits for it as for a child of its own. Imports no torch.
"""

from __future__ import annotations

import ctypes
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
from functools import partial
from typing import Any, NoReturn, TextIO

from everstep.launch.ending import before_forking, end_after

_PR_SET_CHILD_SUBREAPER = 36
_HANDLED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
"""Signals of which this process may have another opinion than a new one."""
_SET_WHEN_MISSING = ("TORCHINDUCTOR_CACHE_DIR",)
"""Variables that whoever reads them sets again: what is forked may still say otherwise."""
_MOST = 1 << 20
_LONGEST = 200
PATIENCE = 120.0
"""Seconds for an answer, the first of which waits for all imports. Whoever asks has other things to see to."""


class Forked:
    """A process as `subprocess.Popen` shows it."""

    def __init__(self, pid: int, args: Sequence[str]) -> None:
        self.pid = pid
        self.args = args
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            except ChildProcessError:  # it is not given to this process yet, or was waited for elsewhere
                self.returncode = None if _exists(self.pid) else 1
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


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Nursery:
    """A process that forks on request. Whoever asks is the parent of what it gets."""

    def __init__(self, connection: socket.socket, process: subprocess.Popen[bytes] | Forked) -> None:
        connection.settimeout(PATIENCE)
        self._connection = connection
        self._process = process

    @classmethod
    def start(
        cls, modules: Sequence[str], environment: Mapping[str, str], python: Sequence[str] = (sys.executable,)
    ) -> Nursery:
        """A new process, for one that has not imported the modules itself."""
        adopt_orphans()
        ours, theirs = _pair()
        command = [*python, "-m", __name__, str(theirs.fileno()), *modules]
        process = subprocess.Popen(command, env=dict(environment), pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()
        return cls(ours, process)

    @classmethod
    def split_off(cls, modules: Sequence[str], folder: str) -> Nursery:
        """A fork of this process, which imports the modules besides, also such as stand in the folder. This process
        must have no other thread."""
        adopt_orphans()
        ours, theirs = _pair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            if not sys.flags.safe_path:
                sys.path[0] = folder
            end_after(partial(serve_and_do, theirs, modules))  # what stands above is the other process's work
        theirs.close()
        return cls(ours, Forked(pid, []))

    def fork(
        self, main: str, args: Sequence[str], environment: Mapping[str, str], cwd: str, outputs: Sequence[int]
    ) -> Forked:
        """A process that calls `main` (module:function), which finds `args` in `sys.argv`. `outputs`: the descriptors
        of its standard output and error. Raises OSError where there is none."""
        told = {"main": main, "args": list(args), "environment": dict(environment), "cwd": cwd, "parent": os.getpid()}
        request = json.dumps(told).encode()
        if len(request) > _MOST:
            raise OSError(f"{len(request)} bytes of arguments and environment")
        socket.send_fds(self._connection, [request], list(outputs))
        try:
            answer = self._connection.recv(_LONGEST)
        except BaseException:  # also a signal's: the answer would be taken for that to the next request
            self.kill()
            raise
        if not answer.isdigit():
            raise OSError(answer.decode() or "the process that forks has ended")
        return Forked(int(answer), args)

    def kill(self) -> None:
        """Nothing is forked any more."""
        self._connection.close()
        self._process.kill()

    def close(self) -> None:
        self._connection.close()
        self._process.wait()


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def adopt_orphans() -> None:
    """Raises OSError where the kernel does not know how: nobody could wait for what is forked."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def serve_and_do(connection: socket.socket, modules: Sequence[str]) -> NoReturn:
    """Import the modules, then fork what is asked for until nobody can ask. Each forked process does what it was made
    for, and ends."""
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in _HANDLED:
        signal.signal(number, signal.SIG_DFL)
    before = dict(os.environ)
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - whoever needs it imports it, and says what is wrong
            print(f"everstep: {name} was not imported ahead: {type(error).__name__}: {error}", file=sys.stderr)
    changed = {name: value for name, value in os.environ.items() if before.get(name) != value}
    by_imports = {name: value for name, value in changed.items() if name not in _SET_WHEN_MISSING}
    before_forking()
    if _threads() > 1:
        print(f"everstep: nothing is forked: an import has started threads ({', '.join(modules)})", file=sys.stderr)
        connection.close()
    elif (todo := _serve(connection, by_imports)) is not None:
        signal.signal(signal.SIGINT, interrupt)
        end_after(todo)
    end_after(lambda: None)


def _threads() -> int:
    """How many a fork leaves: some libraries end theirs before one, and start them again when they need them."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 1  # one that has ended is seen for a moment more
    while (found := len(os.listdir("/proc/self/task"))) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def _serve(connection: socket.socket, by_imports: Mapping[str, str]) -> Callable[[], None] | None:
    """Returns in each forked process, with what it is to do."""
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(connection, _MOST, 2)
        except ConnectionError:
            return None
        if not message:
            return None
        request = json.loads(message)
        forked = False
        try:
            forked = _fork_twice(connection, request["parent"])
        except OSError as error:
            with suppress(OSError):
                connection.send(str(error).encode()[:_LONGEST])
        if forked:
            return _begin(request, descriptors, by_imports)
        for descriptor in descriptors:
            os.close(descriptor)


def _fork_twice(connection: socket.socket, parent: int) -> bool:
    """Whether this is the process that was asked for. It goes on when its pid is told, and `parent` is its parent."""
    between = os.fork()
    if between:
        code = os.waitstatus_to_exitcode(os.waitpid(between, 0)[1])
        if code:
            raise OSError(f"not forked: {os.strerror(code) if code > 0 else f'signal {-code}'}")
        return False
    middle = os.getpid()
    try:
        its, childs = socket.socketpair()
        pid = os.fork()
    except OSError as error:
        os._exit(error.errno or 1)
    if pid:
        childs.close()
        with suppress(OSError):  # of whoever asked, or of the child: it ends where it is not told to go on
            its.recv(1)
            connection.send(str(pid).encode())
            its.send(b"1")
        os._exit(0)
    connection.close()
    its.close()
    os.setsid()
    with suppress(OSError):
        childs.send(b"1")  # signals for its process group reach it from now on
        if childs.recv(1):
            childs.close()
            while os.getppid() == middle:
                time.sleep(0.001)
            if os.getppid() == parent:  # it asks who that is, to end with it
                return True
    os._exit(1)


def _begin(request: dict[str, Any], descriptors: list[int], by_imports: Mapping[str, str]) -> Callable[[], None]:
    """Become a process as `python -u` would have made it."""
    for target, descriptor in zip((1, 2), descriptors, strict=False):
        os.dup2(descriptor, target)
    for descriptor in descriptors:
        os.close(descriptor)
    sys.stdout = sys.__stdout__ = _unbuffered(1, sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _unbuffered(2, sys.stderr)  # type: ignore[misc]
    os.environ.clear()
    os.environ.update(request["environment"] | by_imports)
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


def _unbuffered(descriptor: int, like: TextIO) -> io.TextIOWrapper:
    raw = open(descriptor, "wb", 0, closefd=False)  # noqa: SIM115 - for the life of the process
    return io.TextIOWrapper(raw, encoding=like.encoding, errors=like.errors, write_through=True)


if __name__ == "__main__":
    serve_and_do(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
