"""CPU and memory of a set of processes and of all that they have started, read from /proc."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

_TICKS = os.sysconf("SC_CLK_TCK")
_PAUSE = 0.05


def tree(roots: Iterable[int]) -> dict[int, list[str]]:
    """The processes that live, by id, with the fields of /proc/…/stat after the command."""
    found: dict[int, list[str]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            found[int(path.parent.name)] = path.read_text().rpartition(") ")[2].split()
        except OSError:  # it has just ended
            continue
    wanted = set(roots)
    while more := {pid for pid, fields in found.items() if int(fields[1]) in wanted} - wanted:
        wanted |= more
    return {pid: found[pid] for pid in wanted if pid in found}


def cpu_seconds(roots: Iterable[int]) -> float:
    """Of these processes, of what they have started, and of what has ended and was waited for."""
    return sum(int(ticks) for fields in tree(roots).values() for ticks in fields[11:15]) / _TICKS


@contextmanager
def outranking(nice: int | None) -> Iterator[None]:
    """While a clock runs on a machine that others use too: this session and those below it come before theirs.

    By the nice value of the session's group: where the kernel groups by session, that of a process counts only within.
    Raises RuntimeError where it does not group.
    """
    if nice is None:
        yield
        return
    if Path("/proc/sys/kernel/sched_autogroup_enabled").read_text().strip() != "1":
        raise RuntimeError("--nice would do nothing here: set kernel.sched_autogroup_enabled to 1")
    usual = int(Path("/proc/self/autogroup").read_text().split()[-1])
    _rank_sessions(nice)
    try:
        yield
    finally:
        _rank_sessions(usual)


def _rank_sessions(nice: int) -> None:
    for pid in tree([os.getpid()]):
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/autogroup").write_text(str(nice))


def memory(roots: Iterable[int]) -> int:
    """Bytes: each page counts once, whoever shares it (the kernel's proportional set size)."""
    return sum(_proportional(pid) for pid in tree(roots))


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


class Peak:
    """The most memory while it is entered. It takes time from the measured ones: never beside a clock."""

    def __init__(self, roots: Iterable[int]) -> None:
        self._roots = tuple(roots)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.bytes = 0

    def _watch(self) -> None:
        while not self._done.wait(_PAUSE):
            self.bytes = max(self.bytes, memory(self._roots))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.bytes, memory(self._roots))
