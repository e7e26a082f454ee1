"""Worker groups that are stopped in the middle of a save and come back to life after others took over."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from everstep.checkpoint.termination import read_record
from everstep.failure import FailureRecord
from tests.support.gate import Write
from tests.support.pod_processes import Process, gone

_SAVE = re.compile(r"checkpoints/step_(\d{12})-(\d+)-[0-9a-f]+/manifest\.json$")


@dataclass
class Freezer:
    """A gate's watcher: it holds one request of the save of `step`, has its sender frozen, and lets it through.

    `at`: `manifest` (the sender has yet to ask for the swap), or `swap` (which arrives only when the successor reigns).
    The answer then reaches a stopped process.
    """

    step: int
    at: str
    freeze: Callable[[str], None]
    """Stops the processes behind an address; returns when they have stopped."""
    reigns: Callable[[], bool]
    frozen: threading.Event = field(default_factory=threading.Event)
    delivered: threading.Event = field(default_factory=threading.Event)
    """The request went through to the server, and its answer is on its way."""
    _taken: threading.Lock = field(default_factory=threading.Lock)
    _location: str = ""

    def wants(self, write: Write) -> bool:
        found = _SAVE.search(write.key)
        if found and int(found[1]) == self.step and not self._location:
            self._location = write.key.removesuffix("/manifest.json").rpartition("checkpoints/")[2]
        if self.at == "manifest":
            due = found is not None and int(found[1]) == self.step
        else:
            due = write.key.endswith("/catalog.json") and bool(self._location) and self._location.encode() in write.body
        return due and self._taken.acquire(blocking=False)

    def before(self, write: Write) -> bool:
        self.freeze(write.peer)
        self.frozen.set()
        deadline = time.monotonic() + 120
        while self.at == "swap" and not self.reigns() and time.monotonic() < deadline:
            time.sleep(0.1)
        return True

    def after(self, write: Write) -> bool:
        self.delivered.set()
        return True


def stop(pid: int) -> None:
    """SIGSTOP, and wait until it stands."""
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.005)


@dataclass
class StrayPod:
    """A pod whose node has lost touch: the shim between it and containerd is stopped, so that nobody can kill it, wait
    for it, or hear it. `first` is its PID 1, `worker` its rank."""

    first: Process
    worker: Process
    termination: Path
    ears: list[int]
    """Descriptors of the pipes that its output lies in."""

    @classmethod
    def cut_off(cls, first: Process, worker: Process, state: Path, uid: str) -> StrayPod:
        """Stop its shim, torchrun's agent and its rank. Termination messages lie below `state`, the instance's."""
        container = state / "kubelet" / "pods" / uid / "containers" / "trainer"
        ears = [os.open(f"/proc/{first.pid}/fd/{number}", os.O_RDONLY | os.O_NONBLOCK) for number in (1, 2)]
        stray = cls(first, worker, next(container.iterdir()), ears)
        for pid in (stray.shim, first.pid, worker.pid):
            stop(pid)
        return stray

    @property
    def shim(self) -> int:
        status = Path(f"/proc/{self.first.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))

    def wake(self) -> None:
        """The rank first: an agent that has lost its peers would end it before it can say anything."""
        self.worker.send(signal.SIGCONT)
        assert gone(self.worker), "the rank does not end"
        self.first.send(signal.SIGCONT)

    def end(self, seconds: float = 90) -> tuple[int, str]:
        """The exit code of the container, as its unwaited PID 1 holds it, and what it said since it was cut off."""
        deadline = time.monotonic() + seconds
        said = b""
        while self.first.alive():
            assert time.monotonic() < deadline, f"the zombie does not end; it said: {said.decode(errors='replace')}"
            said += self._listen()
            time.sleep(0.05)
        fields = Path(f"/proc/{self.first.pid}/stat").read_text().rpartition(")")[2].split()
        code = int(fields[49]) >> 8  # field 52 of proc(5), as waitpid gives it
        return code, (said + self._listen()).decode(errors="replace")

    def record(self) -> FailureRecord | None:
        return read_record(self.termination)

    def give_back(self) -> None:
        """Let the node clear it away."""
        for ear in self.ears:
            os.close(ear)
        if self.first.exists():
            os.kill(self.shim, signal.SIGCONT)
            self.first.send(signal.SIGKILL)

    def _listen(self) -> bytes:
        said = b""
        for ear in self.ears:
            with contextlib.suppress(BlockingIOError):
                while piece := os.read(ear, 65536):
                    said += piece
        return said
