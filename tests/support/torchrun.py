"""torchrun on one node, as tests and benchmarks call it: below the image's entry point, and told of no other job."""

from __future__ import annotations

import os
import sys

from tests.support.python_path import python_path

ENTRY = (sys.executable, "-m", "everstep.launch")


def arguments(ranks: int | str, *options: str) -> list[str]:
    """Its own, up to the script. They follow `ENTRY`."""
    return ["torchrun", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={ranks}", *options]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EVERSTEP_", "PET_", "OMP_"))}
    return {**kept, "PYTHONPATH": python_path(), **more}
