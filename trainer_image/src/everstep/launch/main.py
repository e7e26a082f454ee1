"""`everstep-run COMMAND …`: what stands in a container's `args` runs below it.

Plain commands are supervised: signals are passed on (a PID 1 without handlers ignores SIGTERM). `torchrun …` runs
within this process; when its workers fail, the record of the first failure and that worker's exit code become the
container's.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from everstep import exits
from everstep.launch.ending import end_after

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
NOT_FOUND = 127


def run() -> NoReturn:
    """`everstep-run`."""
    end_after(main)


def main(arguments: Sequence[str] | None = None) -> None:
    command = list(sys.argv[1:] if arguments is None else arguments)
    if not command:
        print("usage: everstep-run COMMAND [ARGUMENT …], e.g. everstep-run torchrun train.py", file=sys.stderr)
        raise SystemExit(2)
    signal.signal(signal.SIGTERM, _end_early)
    if command[0] == "torchrun":
        from everstep.launch import warm

        warm.prepare(command[1:])
        from everstep.launch.elastic import run_torchrun

        raise SystemExit(run_torchrun(command[1:]))
    raise SystemExit(supervise(command))


def _end_early(number: int, frame: FrameType | None) -> None:
    """Until torchrun has handlers of its own, which is seconds after the start."""
    raise SystemExit(exits.TERMINATED)


def supervise(command: Sequence[str]) -> int:
    """Run a command to its end; returns its exit code as a shell would."""
    try:
        process = subprocess.Popen(list(command))
    except OSError as error:
        print(f"everstep-run: {command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND
    for number in PASSED_ON:
        signal.signal(number, lambda received, _: process.send_signal(received))
    code = process.wait()
    return code if code >= 0 else 128 - code
