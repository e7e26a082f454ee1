"""Many saves in one process; after each, what this process and its uploader hold, as a line of CSV.

usage: growing.py SAVES FILE, with EVERSTEP_ROOT and credentials in the environment.
"""

from __future__ import annotations

import csv
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.restless import Run

WIDTH = 40_000
FIELDS = ("rss", "pss", "own", "descriptors", "threads")
MIB = 2**20


def held(pid: int) -> list[float]:
    """MiB resident; MiB with pages of several processes divided; of these what is no file, for files are divided anew
    whenever another process on the machine starts or ends; open files; threads."""
    proc = Path(f"/proc/{pid}")
    lines = (line.split(":") for line in (proc / "smaps_rollup").read_text().splitlines()[1:])
    kib = {name: int(value.split()[0]) for name, value in lines}
    sizes = [round(each / 1024, 1) for each in (kib["Rss"], kib["Pss"], kib["Pss_Anon"] + kib["Pss_Shmem"])]
    return [*sizes, *(len(list((proc / name).iterdir())) for name in ("fd", "task"))]


def named_memory(*pids: int) -> int:
    """How many mappings of /dev/shm they have: what is named there outlives a killed process."""
    return sum("/dev/shm" in line for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines())


def main() -> None:
    saves = int(sys.argv[1])
    run = Run(WIDTH)
    with (
        open(sys.argv[2], "w", newline="") as file,
        run.checkpointer(os.environ["EVERSTEP_ROOT"], interval_steps=1) as checkpointer,
    ):
        out = csv.writer(file)
        out.writerow(
            ["save", *(f"{who}_{name}" for who in ("trainer", "uploader") for name in FIELDS), "named", "buffers"]
        )
        checkpointer.keep_last(2)
        for step in checkpointer.steps(saves + 1):
            run.step()
            upload: Any = checkpointer._shards._upload
            if step > 1:
                while (uploader := upload._uploader.pid) is None:  # the first save begins with starting it
                    time.sleep(0.01)
                buffers = checkpointer._shards.buffers.bytes / MIB
                out.writerow(
                    [step - 1, *held(os.getpid()), *held(uploader), named_memory(os.getpid(), uploader), buffers]
                )


if __name__ == "__main__":
    main()
