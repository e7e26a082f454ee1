"""One rank of a gang that is measured: builds the workload and does what the harness asks, one command at a time."""

from __future__ import annotations

import os
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.checkpoint.peers import PEERS, Peer, Place
from benchmarks.checkpoint.workload import Workload

Json = dict[str, Any]


@dataclass(frozen=True)
class Task:
    peer: str
    place: Place
    size: int
    every: int
    """Steps from one save to the next; the length of a window of training."""


class Rank:
    def __init__(self, task: Task) -> None:
        self._task = task
        self._workload = Workload.build(task.size, dist.get_world_size())
        self._peer: Peer | None = None
        self._went = 0.0

    def warm(self) -> Json:
        """A step: what training itself needs is there before anything is measured."""
        self._workload.backward()
        self._workload.optimizer.step()
        self._workload.optimizer.zero_grad()
        return {}

    def first_save(self) -> Json:
        self._peer = PEERS[self._task.peer](self._workload, self._task.place, self._task.every)
        found = self.save()
        self._workload.optimizer.register_step_pre_hook(self._go)  # behind the hook of the peer
        self.skip()
        return found

    def save(self) -> Json:
        """With nothing beside it: the optimizer's step follows at once."""
        peer = self._ready()
        dist.barrier()
        began = time.monotonic()
        peer.boundary()
        boundary = time.monotonic() - began
        waited = self._step(peer)
        return {"began": began, "boundary": boundary, "gate": waited, "committed": peer.wait()}

    def skip(self) -> Json:
        """To the next boundary at which a save is due."""
        peer = self._ready()
        for _ in range(self._task.every - 1):
            peer.boundary()
        return {}

    def train(self, saving: bool) -> Json:
        """A window of training, with a save at its beginning or without any."""
        peer = self._ready()
        boundaries, gates = [0.0], [0.0]
        dist.barrier()
        began = time.monotonic()
        for _ in range(self._task.every):
            if saving:
                at = time.monotonic()
                peer.boundary()
                boundaries.append(time.monotonic() - at)
            self._workload.backward()
            gates.append(self._step(peer))
            self._workload.optimizer.zero_grad()
        ended = time.monotonic()
        committed = peer.wait() if saving else began
        return {
            "began": began,
            "wall": ended - began,
            "boundary": max(boundaries),
            "gate": max(gates) if saving else 0.0,
            "committed": committed,
        }

    def fingerprint(self) -> Json:
        found = torch.tensor(self._workload.fingerprint())
        dist.all_reduce(found)
        return {"sum": int(found[0]), "bytes": int(found[1])}

    def restore(self, place: Place) -> Json:
        """From construction to the state in place."""
        os.environ |= place.endpoint.environment()
        self._workload.spoil()
        dist.barrier()
        began = time.monotonic()
        peer = PEERS[self._task.peer](self._workload, place, self._task.every)
        peer.restore()
        ended = time.monotonic()
        peer.close()
        return {"began": began, "committed": ended}

    def _step(self, peer: Peer) -> float:
        """The optimizer's step; how long it was held."""
        self._went = arrived = time.monotonic()
        with peer.gate():
            self._went = time.monotonic()
            self._workload.optimizer.step()
        return self._went - arrived

    def _go(self, *_: Any) -> None:
        self._went = time.monotonic()

    def _ready(self) -> Peer:
        assert self._peer is not None
        return self._peer

    def close(self) -> Json:
        if self._peer is not None:
            self._peer.close()
        return {}


def serve(pipe: Connection, rank: int, world: int, port: int, task: Task) -> None:
    os.environ |= task.place.endpoint.environment()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        served = Rank(task)
        pipe.send({})
        while True:
            name, arguments = pipe.recv()
            pipe.send(getattr(served, name)(*arguments))
    except EOFError:
        pass
    except BaseException:  # noqa: BLE001 - DCP's CheckpointException is no Exception; the harness tells
        pipe.send({"error": traceback.format_exc()})
        pipe.poll(None)  # the harness ends it, together with what it has started
    os._exit(0)  # some peers wait for their threads
