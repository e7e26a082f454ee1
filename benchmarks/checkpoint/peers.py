"""everstep and its peers behind one small interface, each at its best settings. All run in the ranks.

A peer is told of each boundary between two steps and saves at every so many; `gate` holds the optimizer's step for
as long as the peer needs the state unchanged; `wait` returns once the save is committed on all ranks.
"""

from __future__ import annotations

import functools
import threading
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save, save

from benchmarks.checkpoint.workload import Workload
from dev.s3 import S3Endpoint
from everstep import Checkpointer
from everstep.catalog import S3Access, open_store

PART = 32 << 20
THREADS = 4
PATIENCE = 300.0


@dataclass(frozen=True)
class Place:
    """Where one peer keeps its checkpoints: below an S3 URI, or in a folder for a peer that knows no S3."""

    endpoint: S3Endpoint
    uri: str
    folder: str


class Peer(ABC):
    def __init__(self, workload: Workload, place: Place, every: int) -> None:
        self.workload = workload
        self.place = place
        self.every = every
        self._steps = 0

    def boundary(self) -> None:
        """The end of a step. Each `every`-th one is saved, the first one among them."""
        if self._steps % self.every == 0:
            self.save(self._steps)
        self._steps += 1

    @abstractmethod
    def save(self, step: int) -> None: ...

    def gate(self) -> AbstractContextManager[Any]:
        """Around the optimizer's step."""
        return nullcontext()

    @abstractmethod
    def wait(self) -> float:
        """Returns when the last save was committed, as far as this rank knows (monotonic seconds)."""

    @abstractmethod
    def restore(self) -> None:
        """Load the newest checkpoint of `place` into model and optimizer."""

    def close(self) -> None:
        return


class Everstep(Peer):
    """Its own loop; the gate is its hook on the optimizer."""

    def __init__(self, workload: Workload, place: Place, every: int) -> None:
        super().__init__(workload, place, every)
        self._checkpointer: Checkpointer | None = None
        self._loop: Any = None
        self._landed = threading.Event()
        self._committed = 0.0

    def _open(self, **where: Any) -> Checkpointer:
        workload = self.workload
        self._checkpointer = Checkpointer(
            model=workload.model, optimizer=workload.optimizer, interval_steps=self.every, asynchronous=True, **where
        )
        return self._checkpointer

    def _note(self) -> None:
        self._committed = time.monotonic()
        self._landed.set()

    def boundary(self) -> None:
        if self._loop is None:
            checkpointer = self._open(root=self.place.uri)
            checkpointer.on_commit(lambda _: self._note())
            self._loop = iter(checkpointer.steps(1 << 30))
            for _ in range(self.every):  # up to the end of the first step that is saved
                next(self._loop)
        if self._steps % self.every == 0:
            self.save(self._steps)
        else:
            next(self._loop)
        self._steps += 1

    def save(self, step: int) -> None:
        self._landed.clear()
        next(self._loop)

    def wait(self) -> float:
        if dist.get_rank() == 0 and not self._landed.wait(PATIENCE):
            raise RuntimeError("everstep has not committed")
        dist.barrier()
        return self._committed

    def restore(self) -> None:
        """By an access of its own: the clients of one that names no endpoint stay where they first went."""
        endpoint = self.place.endpoint
        access = S3Access(endpoint.url, endpoint.region, endpoint.access_key, endpoint.secret_key)
        if self._open(store=open_store(self.place.uri, access)).load_latest() is None:
            raise RuntimeError("nothing to restore")

    def close(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.close()


class EverstepLocal(Everstep):
    """With a local tier in the place's folder, which saves what is committed too."""

    def _open(self, **where: Any) -> Checkpointer:
        return super()._open(local=self.place.folder, local_steps=self.every, **where)


class DcpSync(Peer):
    """`dcp.save` and `dcp.load` with s3torchconnector's writer and reader."""

    def writer(self, step: int) -> Any:
        from s3torchconnector.dcp import S3StorageWriter

        config = _config()
        writer = S3StorageWriter(
            self.place.endpoint.region, f"{self.place.uri}/step-{step}", config, thread_count=THREADS
        )
        writer.fs._client = client(self.place)
        return writer

    def save(self, step: int) -> None:
        save(self.workload.state(), storage_writer=self.writer(step))
        self._committed = time.monotonic()

    def wait(self) -> float:
        return self._committed

    def restore(self) -> None:
        from s3torchconnector.dcp import S3StorageReader

        state = self.workload.state()
        reader = S3StorageReader(self.place.endpoint.region, f"{self.place.uri}/step-{self.newest}", _config())
        reader.fs._client = client(self.place)
        load(state, storage_reader=reader)
        self.workload.take(state)

    @property
    def newest(self) -> int:
        """By its commit, the `.metadata` that DCP writes last."""
        import boto3

        pages = boto3.client("s3").get_paginator("list_objects_v2")
        bucket, _, prefix = self.place.uri.removeprefix("s3://").partition("/")
        keys = [found["Key"] for page in pages.paginate(Bucket=bucket, Prefix=prefix) for found in page["Contents"]]
        return max(int(key.split("/step-")[1].split("/")[0]) for key in keys if key.endswith("/.metadata"))


class DcpAsync(DcpSync):
    """`dcp.async_save` as it comes: a thread, a new stager each time. Over a group of its own, as training goes on."""

    def __init__(self, workload: Workload, place: Place, every: int) -> None:
        super().__init__(workload, place, every)
        self._group: Any = dist.new_group(backend="gloo")

    def save(self, step: int) -> None:
        self._watch(async_save(self.workload.state(), storage_writer=self.writer(step), process_group=self._group))

    def _watch(self, future: Any) -> None:
        self._future = future
        future.add_done_callback(lambda _: setattr(self, "_committed", time.monotonic()))

    def wait(self) -> float:
        self._future.result(PATIENCE)
        return self._committed


class DcpTuned(DcpAsync):
    """As torchtitan tunes it: one stager with shared memory for all saves, which copies beside the next forward and
    backward; a process that writes; cached plans. The wait for the stager comes before the optimizer's step."""

    def __init__(self, workload: Workload, place: Place, every: int) -> None:
        super().__init__(workload, place, every)
        pinned = torch.cuda.is_available()
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=pinned, use_shared_memory=True, use_async_staging=True, use_non_blocking_copy=pinned
            )
        )
        self._staged: Any = None

    def save(self, step: int) -> None:
        answer = async_save(
            self.workload.state(),
            storage_writer=self.writer(step),
            planner=DefaultSavePlanner(enable_plan_caching=True),
            process_group=self._group,
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
            async_stager=self._stager,
        )
        self._staged = answer.staging_completion  # type: ignore[union-attr]
        self._watch(answer.upload_completion)  # type: ignore[union-attr]

    def gate(self) -> AbstractContextManager[Any]:
        if self._staged is not None:
            self._staged.result(PATIENCE)
        return nullcontext()

    def close(self) -> None:
        self._stager.close()


class TorchCheckpointing(Peer):
    """Meta's torch-checkpointing into a folder of the local disk: it has no S3, and it never calls fsync. Nor can it
    load at another world size here: its resharder asks for CUDA."""

    def __init__(self, workload: Workload, place: Place, every: int) -> None:
        super().__init__(workload, place, every)
        from torch_checkpointing import CheckpointManager
        from torch_checkpointing.checkpoint_process import CheckpointProcessConfig
        from torch_checkpointing.config import AsyncCheckpointSaverConfig
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        storage = LocalFileSystemStorageConfig(use_direct_io=False)  # with it, ext4 refuses its unaligned writes
        patient = CheckpointProcessConfig(subprocess_init_timeout_secs=300)  # 30 s are too few on a busy machine
        saver = AsyncCheckpointSaverConfig(process_config=patient)
        self._manager = CheckpointManager(CheckpointManager.Config(save=saver, storage_config=storage))
        self._future: Any = None
        self._committed = 0.0

    def save(self, step: int) -> None:
        self._future = self._manager.save(f"{self.place.folder}/step-{step}", self.workload.state())
        self._future.add_done_callback(lambda _: setattr(self, "_committed", time.monotonic()))

    def gate(self) -> AbstractContextManager[Any]:
        held: AbstractContextManager[Any] = self._manager.lock()
        return held

    def wait(self) -> float:
        self._future.result(PATIENCE)
        return self._committed

    def restore(self) -> None:
        state = self.workload.state()
        newest = max(int(path.name.removeprefix("step-")) for path in Path(self.place.folder).glob("step-*"))
        self._manager.load(f"{self.place.folder}/step-{newest}", into=state)
        self.workload.take(state)

    def close(self) -> None:
        self._manager.close()


@functools.cache
def client(place: Place) -> Any:
    """One client a process, the writing process of `DcpTuned` included: to start one costs threads and time."""
    from s3torchconnector._s3client import S3Client

    class Client(S3Client):  # type: ignore[misc]
        def __reduce__(self) -> tuple[Any, ...]:
            return client, (place,)

    return Client(place.endpoint.region, endpoint=place.endpoint.url, s3client_config=_config())


def _config() -> Any:
    from s3torchconnector import S3ClientConfig

    return S3ClientConfig(part_size=PART, force_path_style=True)


PEERS: dict[str, type[Peer]] = {
    "everstep": Everstep,
    "everstep, local tier": EverstepLocal,
    "DCP sync, s3torchconnector": DcpSync,
    "DCP async, default": DcpAsync,
    "DCP async, tuned": DcpTuned,
    "torch-checkpointing, local disk": TorchCheckpointing,
}
