"""Gangs whose agents and ranks are forked from processes that have imported torch: torchrun's agent and its store
included, they run what `python -m everstep.launch` runs."""

from __future__ import annotations

import ctypes
import os
import socket
from pathlib import Path
from typing import Any

from tests.support.nursery import Nursery, adopt_orphans, serve_and_do

MODULES = (
    "everstep",
    "everstep.launch.elastic",
    "everstep.launch.worker",
    "everstep.train.recipe",
    "torch.distributed.fsdp",
    "torch._dynamo",  # which the first optimizer imports
    "torch.utils.tensorboard",
    "transformers.models.gpt2.modeling_gpt2",
    "boto3",
    __name__,
)
AGENT = f"{__name__}:agent"
WORKER = ["-m", "everstep.launch.worker"]
RANK = "everstep-rank"
"""What the kernel calls a forked rank; at most 15 bytes."""
_PR_SET_NAME = 15


def agent() -> None:
    """`python -m everstep.launch …`, whose ranks are forked as well."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    from everstep.launch.main import main

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    adopt_orphans()
    if os.fork() == 0:
        ours.close()
        serve_and_do(theirs)
        return
    theirs.close()
    nursery = Nursery(ours)
    handler = subprocess_handler.SubprocessHandler
    execute = handler._popen

    def popen(self: Any, command: tuple[str, ...], environment: dict[str, str]) -> Any:
        if list(command[2:4]) != WORKER:
            return execute(self, command, environment)
        outputs = [stream.fileno() if stream else number for number, stream in ((1, self._stdout), (2, self._stderr))]
        return nursery.fork(f"{__name__}:rank", command[4:], environment, os.getcwd(), outputs)

    handler._popen = popen  # type: ignore[method-assign, assignment]
    main()


def rank() -> None:
    """`python -m everstep.launch.worker …`."""
    from everstep.launch.worker import main

    ctypes.CDLL(None).prctl(_PR_SET_NAME, RANK.encode())
    main()


def is_rank(pid: int) -> bool:
    place = Path(f"/proc/{pid}")
    return (
        place.joinpath("comm").read_text().strip() == RANK
        or b"everstep.launch.worker" in (place / "cmdline").read_bytes()
    )
