"""Starts gangs by fork from a process that has imported everything: a gang costs a second of CPU time instead of ten.

A gang is torchrun's own agent with forked ranks; what `python -m torch.distributed.run` does before that is to read
arguments and to import torch, thrice. The tests of every day start their gangs the long way.

usage: python -m tests.survival.zygote MODULE…; orders come as lines of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.python_path import python_path
from tests.survival.striker import lives

TORCH = (
    *("torch", "torch.distributed.launcher.api", "torch.distributed.fsdp", "torch.distributed.checkpoint"),
    *("torch.distributed.checkpoint.state_dict", "torch.distributed.tensor", "torch.optim", "torch._dynamo"),
)


class Forked:
    """A gang's agent, as `subprocess.Popen` shows a child of one's own."""

    def __init__(self, pid: int, code: Path) -> None:
        self.pid = pid
        self._code = code

    def poll(self) -> int | None:
        if lives(self.pid):
            return None
        return int(self._code.read_text()) if self._code.exists() else -signal.SIGKILL

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (timeout or 60)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("gang", timeout or 60)
            time.sleep(0.05)
        return code


class Zygote:
    def __init__(self, modules: Sequence[str], python: Sequence[str] = (sys.executable,)) -> None:
        self._process = subprocess.Popen(
            [*python, "-m", "tests.survival.zygote", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"},
        )

    def start(self, script: str, folder: Path, log: Path, environment: Mapping[str, str]) -> Forked:
        code = log.with_suffix(".code")
        order = {"script": script, "folder": str(folder), "log": str(log), "code": str(code), "env": dict(environment)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Forked(int(self._process.stdout.readline()), code)

    def end(self) -> None:
        """It ends with its orders."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(modules: Sequence[str]) -> None:
    for name in (*TORCH, *modules):
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(order)
        print(pid, flush=True)


def become(order: Mapping[str, Any]) -> None:
    """The agent of one gang; does not return."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.chdir(order["folder"])
        nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.environ.clear()
        os.environ.update(order["env"])
        gang(order["script"])
        code = 0
    except BaseException:  # noqa: BLE001 - it goes to the log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        Path(order["code"]).write_text(str(code))
        os._exit(code)


def gang(script: str) -> None:
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
    elastic_launch(config, run)(script)


def run(script: str) -> None:
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1:])
