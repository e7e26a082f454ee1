"""Gangs that are forked from a process which has imported everything: one costs a second of CPU time instead of ten.

A gang is torchrun's own agent with forked ranks; what `python -m torch.distributed.run` does before that is to read
arguments and to import torch, thrice.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from everstep.launch.nursery import Forked, Nursery
from tests.support.python_path import python_path

TORCH = (
    *("torch", "torch.distributed.launcher.api", "torch.distributed.fsdp", "torch.distributed.checkpoint"),
    *("torch.distributed.checkpoint.state_dict", "torch.distributed.tensor", "torch.optim", "torch._dynamo"),
)


class Zygote:
    def __init__(self, modules: Sequence[str], python: Sequence[str] = (sys.executable,)) -> None:
        environment = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
        subprocess.run([*python, "-c", ""], check=True)  # what it has to fetch first may take longer than a nursery may
        self._nursery = Nursery.start([*TORCH, *modules, __name__], environment, python)

    def start(self, script: str, folder: Path, log: Path, environment: Mapping[str, str]) -> Forked:
        """The gang's agent."""
        with log.open("a") as output:
            return self._nursery.fork(f"{__name__}:gang", [script], environment, str(folder), [output.fileno()] * 2)

    def end(self) -> None:
        self._nursery.close()


def gang() -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, run)(sys.argv[1])


def run(script: str) -> None:
    runpy.run_path(script, run_name="__main__")
