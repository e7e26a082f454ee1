"""The processes of a pod as the node's root sees them, to stop and kill them as a kernel or a failing host would."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from everstep.launch import warm


@dataclass(frozen=True)
class Process:
    """One process of a pod. `inner` is its pid in the container: 1 is the one whose end is the container's."""

    pid: int
    inner: int
    environment: dict[str, str]

    @property
    def is_worker(self) -> bool:
        """Whether torchrun started it as a rank, or it is of one."""
        return is_rank(self.pid)

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def exists(self) -> bool:
        """Also as a zombie that nobody has waited for."""
        return Path(f"/proc/{self.pid}").exists()

    def alive(self) -> bool:
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return stat[stat.rindex(")") + 2] not in "ZX"


def of_pod(address: str, uid: str) -> list[Process]:
    """Processes of the pod at an address that works for the job `uid`, eldest first."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            content = (place / "environ").read_bytes()
            status = (place / "status").read_text()
        except OSError:
            continue
        environment = dict(part.decode(errors="replace").split("=", 1) for part in content.split(b"\0") if b"=" in part)
        if environment.get("EVERSTEP_JOB_UID") == uid and environment.get("PET_LOCAL_ADDR") == address:
            inner = next(line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:"))
            found.append(Process(int(place.name), int(inner), environment))
    return sorted(found, key=lambda process: process.inner)


def is_rank(pid: int) -> bool:
    """A forked one is known by its name alone: environment and command line, as /proc has them, are the agent's."""
    place = Path(f"/proc/{pid}")
    try:
        named = re.fullmatch(warm.name(r"\d+"), (place / "comm").read_text().strip())
        return named is not None or b"\0LOCAL_RANK=" in b"\0" + (place / "environ").read_bytes()
    except OSError:
        return False


def worker(address: str, uid: str) -> Process:
    """The pod's first rank."""
    return next(process for process in of_pod(address, uid) if process.is_worker)


def first(address: str, uid: str) -> Process:
    """The container's PID 1."""
    return next(process for process in of_pod(address, uid) if process.inner == 1)


def gone(process: Process, seconds: float = 60) -> bool:
    """Wait until it has ended."""
    deadline = time.monotonic() + seconds
    while process.alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
