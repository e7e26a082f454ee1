"""The harness's end of a gang: starts its ranks, hands them commands, and kills what is left of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from benchmarks.checkpoint.measuring import tree
from benchmarks.checkpoint.rank import Task, serve
from dev.ports import free_ports

Json = dict[str, Any]
PATIENCE = 600.0


class GangError(RuntimeError):
    """A rank failed, with what it said."""


class Gang:
    """Ranks are forked from a server that has imported everything, so that to start some costs next to nothing."""

    def __init__(self, world: int, task: Task) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.checkpoint.rank"])
        port = free_ports(1)[0]
        self._pipes: list[Connection] = []
        self._ranks = []
        for rank in range(world):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, rank, world, port, task))
            process.start()
            there.close()
            self._pipes.append(here)
            self._ranks.append(process)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._ranks if process.pid is not None]

    def call(self, name: str, *arguments: object) -> list[Json]:
        """One command on all ranks, and their answers."""
        for pipe in self._pipes:
            pipe.send((name, arguments))
        return self._answers()

    def _answers(self) -> list[Json]:
        found = []
        for number, pipe in enumerate(self._pipes):
            if not pipe.poll(PATIENCE):
                raise GangError(f"rank {number} has not answered for {PATIENCE:.0f} s")
            try:
                answer = pipe.recv()
            except EOFError:
                raise GangError(f"rank {number} has ended") from None
            if "error" in answer:
                raise GangError(f"rank {number}: {answer['error']}")
            found.append(answer)
        return found

    def __enter__(self) -> Gang:
        try:
            self._answers()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            with contextlib.suppress(GangError):
                self.call("close")
        self._kill()

    def _kill(self) -> None:
        for pid in tree(self.pids):  # what the ranks have started goes with them
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._ranks:
            process.join(10)
