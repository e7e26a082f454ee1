"""What each rank was at when its gang was given up for hanging: the stacks of all its threads, kept for people.

A worker has faulthandler write them at a signal, which needs neither its main thread nor Python's lock. The agent,
whose process does not hang with the workers', sends that signal when it is told to end and a look at the register says
that a newer attempt has begun: before a planned stop there is none, and a worker that saves is left alone. It prints
the stacks, puts them below `progress/`, and kills its workers: nothing that they might still do counts.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

VARIABLE = "EVERSTEP_STACKS"
"""The folder in which a worker's file stands, by its pid."""
SIGNAL = signal.SIGRTMIN + 5
PATIENCE = 1.0
"""Seconds after SIGTERM that a worker has to end by itself."""
ANSWER = 2.0
"""Seconds that a worker has to write its stacks."""
KEEP_SECONDS = 5.0
"""For which the agent waits until they are stored, its workers having ended."""
MOST_BYTES = 1 << 20

_file: object = None
"""Kept open: faulthandler writes into its descriptor."""


@contextlib.contextmanager
def prepared() -> Iterator[Path]:
    """In the agent, around all that its workers do: the folder in which they write."""
    with tempfile.TemporaryDirectory(prefix="everstep-stacks-", ignore_cleanup_errors=True) as folder:
        os.environ[VARIABLE] = folder
        yield Path(folder)


def register() -> None:
    """In a worker. Its file appears when the handler stands: before that the signal would end the process."""
    global _file
    folder = os.environ.get(VARIABLE)
    if not folder:
        return
    with contextlib.suppress(OSError):
        draft = Path(folder) / f".{os.getpid()}"
        _file = file = draft.open("w")
        faulthandler.register(SIGNAL, file=file, all_threads=True, chain=False)
        draft.rename(Path(folder) / str(os.getpid()))


def farewell(
    folder: Path,
    pids: Mapping[int, int],
    given_up: Callable[[], bool],
    keep: Callable[[str], None],
    patience: float = PATIENCE,
) -> None:
    """In the agent, once its workers were told to end. `pids`: by local rank. Never raises."""
    try:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if not any(_lives(pid) for pid in pids.values()):
                return
            time.sleep(0.05)
        if not given_up():
            return
        text = take(folder, {rank: pid for rank, pid in pids.items() if _lives(pid)})
        print(text, file=sys.stderr, flush=True)
        keep(text)
        for pid in pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    except Exception as error:  # noqa: BLE001 - it is for people, and must not hold up the end
        print(f"everstep: no stacks: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def in_background(
    folder: Path, pids: Mapping[int, int], given_up: Callable[[], bool], keep: Callable[[str], None]
) -> threading.Thread:
    thread = threading.Thread(target=farewell, args=(folder, pids, given_up, keep), name="stacks", daemon=True)
    thread.start()
    return thread


def take(folder: Path, pids: Mapping[int, int]) -> str:
    """The stacks of the workers that answer."""
    asked = {rank: folder / str(pid) for rank, pid in pids.items() if (folder / str(pid)).exists()}
    for rank in asked:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[rank], SIGNAL)
    deadline = time.monotonic() + ANSWER
    sizes: dict[int, int] = {}
    while time.monotonic() < deadline:
        time.sleep(0.1)
        before, sizes = sizes, {rank: file.stat().st_size for rank, file in asked.items()}
        if sizes == before and all(sizes.values()):
            break
    return "\n".join(_told(rank, pid, asked.get(rank)) for rank, pid in sorted(pids.items()))


def _told(rank: int, pid: int, file: Path | None) -> str:
    head = f"everstep: local rank {rank} (pid {pid}) was given up for hanging"
    if file is None:
        return f"{head}; it was not started by everstep-run's torchrun, or had not begun"
    text = file.read_text(errors="replace")[:MOST_BYTES].strip()
    return f"{head}; its threads:\n{text}\n" if text else f"{head}; it gave no answer (stopped, or in the kernel)"


def _lives(pid: int) -> bool:
    """Zombies do not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] not in "ZX"


def is_given_up() -> bool:
    """Whether the register says that a newer attempt than this one has begun."""
    from everstep.catalog import JobCatalog, open_store

    root, attempt = os.environ.get("EVERSTEP_ROOT"), os.environ.get("EVERSTEP_ATTEMPT", "")
    if not root or not attempt.isdigit():
        return False
    catalog = JobCatalog(open_store(root)).read()
    return catalog is not None and catalog.attempt > int(attempt)


def upload(text: str) -> None:
    """Beside the attempt's heartbeat, so that it goes with the job's other traces."""
    from everstep.catalog import open_store
    from everstep.catalog.keys import stacks_key

    attempt, pod = int(os.environ["EVERSTEP_ATTEMPT"]), os.environ.get("HOSTNAME") or "pod"
    key = stacks_key(attempt, pod)
    open_store(os.environ["EVERSTEP_ROOT"]).put(key, text.encode())
    print(f"everstep: kept as {os.environ['EVERSTEP_ROOT']}/{key}", file=sys.stderr, flush=True)
