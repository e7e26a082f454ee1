"""Starts real torchrun gangs through the image's entry point, and reads what they say."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everstep.checkpoint.termination import read_record
from everstep.failure import FailureRecord
from everstep.launch import warm
from everstep.launch.nursery import Forked
from tests.support import pod_processes, starting, torchrun

IMPORTED = ("everstep.launch.elastic", *warm.MODULES, *warm.OF_THE_RECIPE)
TINY = str(Path(__file__).parent / "tiny.py")
RECIPE = (
    *("-m", "everstep.train", "--steps", "30", "--save_steps", "5", "--evaluation.every", "10"),
    *("--model.family", "gpt2", "--model.dropout", "0.1", "--micro_batch", "2", "--data.max_bytes", "1000000"),
    *("--model.layers", "2"),
)
"""Dropout makes it depend on the random numbers of each rank, micro batches on where a step ends."""


@dataclass
class Gang:
    """A running gang in a process group of its own."""

    process: subprocess.Popen[str] | Forked
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def lines(self) -> list[dict[str, Any]]:
        """The step lines of rank 0."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{") and line.endswith("}")]

    def losses(self) -> dict[int, str]:
        return {line["step"]: line["loss_hex"] for line in self.lines()}

    def samples(self) -> dict[int, list[int]]:
        return {line["step"]: line["samples"] for line in self.lines()}

    @property
    def record(self) -> FailureRecord | None:
        return read_record(self.folder / "termination")

    def wait_for(self, text: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.log:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{text!r} did not appear; the log ends:\n{self.log[-3000:]}")
            time.sleep(0.05)

    def wait(self, seconds: float = 180) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {seconds} s; the log ends:\n{self.log[-3000:]}") from None

    def kill(self) -> None:
        """SIGKILL for all of it at once, as the end of a container is."""
        if self.process.poll() is None:
            for pid in [*self.workers(), self.process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()

    def workers(self) -> list[int]:
        """Process ids of the ranks."""
        path = Path(f"/proc/{self.process.pid}/task")
        children = [int(pid) for task in path.iterdir() for pid in (task / "children").read_text().split()]
        return [pid for pid in children if pod_processes.is_rank(pid)]


def start(
    folder: Path,
    command: Sequence[str],
    root: str,
    ranks: int = 2,
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> Gang:
    folder.mkdir(parents=True, exist_ok=True)
    termination = folder / "termination"
    termination.write_text("")
    told = {
        "EVERSTEP_ROOT": root,
        "EVERSTEP_TERMINATION_LOG": str(termination),
        "EVERSTEP_HEARTBEAT_SECONDS": "1",
        "OMP_NUM_THREADS": "1",
    }
    variables = torchrun.environment(**told | dict(environment or {}))
    process: subprocess.Popen[str] | Forked
    arguments = [*torchrun.arguments(ranks, *options), *command]
    with (folder / "log").open("w") as log:
        if starting.COLD:
            process = subprocess.Popen(
                [*torchrun.ENTRY, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=variables,
                start_new_session=True,
                text=True,
            )
        else:
            outputs = [log.fileno(), log.fileno()]
            process = starting.nursery(*IMPORTED).fork(
                "everstep.launch.main:main", arguments, variables, str(folder), outputs
            )
    return Gang(process, folder)


def run(folder: Path, command: Sequence[str], root: str, **options: Any) -> Gang:
    """Start and wait for success."""
    gang = start(folder, command, root, **options)
    code = gang.wait()
    assert code == 0, gang.log
    return gang
