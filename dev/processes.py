"""Daemons that outlive the command that started them, recorded so that only our own are ever signalled.

A pid alone is not an identity: it is reused. A record therefore carries the start time in clock ticks since boot and
the boot's id, and a process whose record does not match is treated as gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ENVIRONMENT = {"GOGC": "400"}
"""Of each daemon, where nothing else is set: Kubernetes is written in Go, and a development machine has memory to spare
sooner than processor seconds."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class ProcessError(RuntimeError):
    """A daemon did not start, or ended before it was ready."""


@dataclass(frozen=True)
class Record:
    """Identity of a running process."""

    name: str
    pid: int
    start_ticks: int
    boot_id: str


def start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None where there is none, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the command's name may hold spaces and parentheses
    return None if fields[0] in "ZX" else int(fields[19])


class Processes:
    """The daemons of one instance: `{name}.json` holds the record and `{name}.log` the output of each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> Record:
        """Start a daemon in a session of its own. `prefix` is a command that ends in exec (so that the pid stays)."""
        if self.alive(name):
            raise ProcessError(f"{name} is already running: stop this instance first")
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [*prefix, *argv]
        path = shutil.which(command[0])
        if path is None:
            raise ProcessError(f"{name}: the program {command[0]!r} was not found")
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawn(
            path,
            command,
            {**ENVIRONMENT, **os.environ, **(environment or {})},
            setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.log(name)), append, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
        ticks = start_ticks(pid)
        if ticks is None:
            raise ProcessError(f"{name} ended at once; its last words:\n{self.tail(name)}")
        record = Record(name, pid, ticks, BOOT_ID.read_text().strip())
        (self.directory / f"{name}.json").write_text(json.dumps(asdict(record)))
        return record

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def tail(self, name: str, lines: int = 15) -> str:
        """The last lines of a daemon's output."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-lines:])
        return ""

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.directory.glob("*.json"))

    def record(self, name: str) -> Record | None:
        """The record of a daemon that still runs, else None."""
        try:
            found = Record(**json.loads((self.directory / f"{name}.json").read_text()))
        except FileNotFoundError:
            return None
        with contextlib.suppress(ChildProcessError):
            os.waitpid(found.pid, os.WNOHANG)  # reap it if it was ours and has ended
        same_boot = found.boot_id == BOOT_ID.read_text().strip()
        return found if same_boot and start_ticks(found.pid) == found.start_ticks else None

    def alive(self, name: str) -> bool:
        return self.record(name) is not None

    def stop(self, names: Iterable[str], *, grace: float = 10.0) -> None:
        """SIGTERM all of them, wait up to `grace` seconds, SIGKILL what is left, and forget the records."""
        chosen = list(names)
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
            running = [record for name in chosen if (record := self.record(name))]
            for record in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(record.pid, number)
            deadline = time.monotonic() + patience
            while any(self.alive(record.name) for record in running) and time.monotonic() < deadline:
                time.sleep(0.02)
        for name in chosen:
            if not self.alive(name):
                (self.directory / f"{name}.json").unlink(missing_ok=True)

    def wait(self, name: str, ready: Callable[[], bool], *, seconds: float, interval: float = 0.1) -> None:
        """Wait until `ready()` holds; raise with the end of its log if the daemon ends or the time is over first."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.alive(name):
                raise ProcessError(f"{name} ended before it was ready; its last words:\n{self.tail(name)}")
            if time.monotonic() > deadline:
                raise ProcessError(f"{name} was not ready after {seconds:.0f} s; its last words:\n{self.tail(name)}")
            time.sleep(interval)
