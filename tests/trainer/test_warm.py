"""A forked rank finds what a started one finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from everstep.launch import warm
from tests.support import torchrun

PROBE = """
OTHER = ("MASTER_PORT", "EVERSTEP_STACKS", "EVERSTEP_WARM_RANKS", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE")
import json, multiprocessing, os, signal, sys, threading
import numpy, random, torch
from everstep import Checkpointer
facts = {
    "argv": sys.argv, "name": __name__, "file": sys.modules["__main__"].__file__, "here": os.getcwd(),
    "path": sys.path[0], "threads": torch.get_num_threads(), "rank": os.environ["RANK"],
    "environment": {name: value for name, value in os.environ.items() if name not in OTHER},
    "signals": [str(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)],
    "leads": os.getsid(0) == os.getpid(), "of": open(f"/proc/{os.getppid()}/cmdline").read().split("\\0")[1:4],
    "process": multiprocessing.current_process().name, "python_threads": threading.active_count(),
    "open": sorted(fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}"))[:4],
    "unbuffered": sys.stdout.write_through,
}
drawn = [random.random(), numpy.random.random(), torch.rand(()).item()]
comm = open("/proc/self/comm").read().strip()
sys.stdout.write(json.dumps({"facts": facts, "comm": comm, "drawn": drawn}) + "\\n")
os._exit(0)  # what stands in a buffer would be lost
"""


NAME = """
import json, os, sys
line = json.dumps({"facts": {"rank": os.environ["RANK"]}, "comm": open("/proc/self/comm").read().strip()})
sys.stdout.write(line + "\\n")  # one write: another rank writes there, too
"""
KILLS_THE_FORKING_ONE = """
import json, os, signal
restart = os.environ["TORCHELASTIC_RESTART_COUNT"]
print(json.dumps({"facts": {"rank": restart}, "comm": open("/proc/self/comm").read().strip()}))
if restart == "0":
    for pid in open(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read().split():
        if int(pid) != os.getpid():
            os.kill(int(pid), signal.SIGKILL)
    raise SystemExit(1)
"""


def probe(
    folder: Path, forked: bool, ranks: int | str, *options: str, text: str = PROBE, **environment: str
) -> list[dict[str, Any]]:
    """What each rank says of itself."""
    script = folder / "probe.py"
    script.write_text(text)
    variables = torchrun.environment(**{warm.SWITCH: str(int(forked))}, **environment)
    command = [*torchrun.ENTRY, *torchrun.arguments(ranks, *options), str(script), "--an=argument"]
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return sorted(said, key=lambda each: str(each["facts"]["rank"]))


def test_a_forked_rank_finds_what_a_started_one_finds(tmp_path: Path) -> None:
    options = {"EVERSTEP_PRELOAD": "no_such_module,tarfile"}
    forked, started = (probe(tmp_path, way, 2, **options) for way in (True, False))
    assert [each["comm"] for each in forked] == ["rank-0", "rank-1"]
    assert [each["comm"] for each in started] != ["rank-0", "rank-1"]
    assert [each["facts"] for each in forked] == [each["facts"] for each in started]
    assert all(len(set(numbers)) == 2 for numbers in zip(*(each["drawn"] for each in forked), strict=True))
    assert forked[0]["facts"]["threads"] == 1, "several ranks of a node share its processors"


@pytest.mark.skipif(os.cpu_count() == 1, reason="torchrun leaves a single rank its threads")
def test_a_rank_is_started_where_its_libraries_would_find_something_else(tmp_path: Path) -> None:
    """Here torchrun chooses the number of threads when torch is loaded already."""
    said = probe(tmp_path, True, "cpu", text=NAME)
    assert not [each for each in said if each["comm"].startswith("rank-")]


def test_a_rank_is_started_where_another_python_is_to_run_it(tmp_path: Path) -> None:
    other = tmp_path / "other-python"
    other.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    (said,) = probe(tmp_path, True, 1, text=NAME, PYTHON_EXEC=str(other))
    assert not said["comm"].startswith("rank-")


def test_a_rank_is_started_where_the_forking_process_is_gone(tmp_path: Path) -> None:
    first, second = probe(tmp_path, True, 1, "--max-restarts=1", text=KILLS_THE_FORKING_ONE)
    assert first["comm"] == "rank-0"
    assert not second["comm"].startswith("rank-")
