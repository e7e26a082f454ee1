"""One client, one direction, one measurement: `files` objects of the same size, four at a time; or one save of all.

Started by `benchmarks.checkpoint.raw` in a process of its own, so that what is measured is this client's alone: wall
seconds, and the CPU seconds of this process and of its children while the bytes moved. Memory for the bodies is there
before the clock starts, and one small object has been moved.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from everstep.catalog import S3Access, open_store
from everstep.catalog.sums import BLOCK, block_sums
from everstep.transfer import Segment, SharedBuffer, Uploader

PART = 32 << 20
CONNECTIONS = 8
PARALLEL = 4

Move = Callable[[int], object]
"""Moves the object of a number."""


@dataclass(frozen=True)
class Task:
    url: str
    key: str
    secret: str
    bucket: str
    size: int
    files: int

    @property
    def access(self) -> S3Access:
        return S3Access(self.url, "us-east-1", self.key, self.secret)

    def environment(self) -> None:
        os.environ |= {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.url,
        }


def name(number: int) -> str:
    return f"raw/{number}"


def everstep_put(task: Task, body: memoryview) -> Move:
    store = open_store(f"s3://{task.bucket}", replace(task.access, connections=CONNECTIONS))
    return lambda number: store.put(name(number), body, block_sums(body))


def everstep_summed_put(task: Task, body: memoryview) -> Move:
    """The sums were made when the bytes were copied out of the tensors."""
    store, sums = open_store(f"s3://{task.bucket}", replace(task.access, connections=CONNECTIONS)), block_sums(body)
    return lambda number: store.put(name(number), body, sums)


def everstep_uploader_put(task: Task, body: memoryview) -> Move:
    buffer = SharedBuffer(len(body))
    buffer.view[:] = body
    sums = block_sums(body)
    uploader = Uploader(f"s3://{task.bucket}", replace(task.access, connections=CONNECTIONS))
    uploader.start()
    uploader.submit("raw/warm", Segment(buffer, 0, 1)).result(60)
    return lambda number: uploader.submit(name(number), Segment(buffer, 0, len(body)), sums).result(600)


def everstep_get(task: Task, body: memoryview) -> Move:
    store = open_store(f"s3://{task.bucket}", replace(task.access, connections=CONNECTIONS))
    return lambda number: store.read_into(name(number), 0, body)


class Into(io.RawIOBase):
    """A file in memory, so that bytes end where restore wants them."""

    def __init__(self, body: memoryview) -> None:
        self._body = body
        self._at = 0

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset
        return offset

    def write(self, data: Any) -> int:
        self._body[self._at : self._at + len(data)] = data
        self._at += len(data)
        return len(data)


def _boto3(task: Task) -> tuple[Any, Any]:
    import boto3
    from boto3.s3.transfer import TransferConfig

    task.environment()
    return boto3.client("s3"), TransferConfig(
        multipart_threshold=2 * PART, multipart_chunksize=PART, max_concurrency=CONNECTIONS
    )


def boto3_put(task: Task, body: memoryview) -> Move:
    client, config = _boto3(task)
    return lambda number: client.upload_fileobj(io.BytesIO(body), task.bucket, name(number), Config=config)


def boto3_get(task: Task, body: memoryview) -> Move:
    client, config = _boto3(task)
    return lambda number: client.download_fileobj(task.bucket, name(number), Into(body), Config=config)


def _crt(task: Task) -> Any:
    """As boto3 makes it, but for TLS, on which boto3's own way to CRT insists whatever the endpoint."""
    import botocore.session
    from s3transfer.crt import (
        BotocoreCRTCredentialsWrapper,
        BotocoreCRTRequestSerializer,
        CRTTransferManager,
        create_s3_crt_client,
    )

    task.environment()
    session = botocore.session.Session()
    wrapped = BotocoreCRTCredentialsWrapper(session.get_credentials())
    client = create_s3_crt_client(
        "us-east-1", wrapped.to_crt_credentials_provider(), use_ssl=False, part_size=PART, target_throughput=10**10 / 8
    )
    serializer = BotocoreCRTRequestSerializer(
        session, {"region_name": "us-east-1", "endpoint_url": task.url, "use_ssl": False}
    )
    return CRTTransferManager(client, serializer)


def crt_put(task: Task, body: memoryview) -> Move:
    manager = _crt(task)
    return lambda number: manager.upload(io.BytesIO(body), task.bucket, name(number)).result()


def crt_get(task: Task, body: memoryview) -> Move:
    manager = _crt(task)
    return lambda number: manager.download(task.bucket, name(number), Into(body)).result()


def _mountpoint(task: Task) -> Any:
    from s3torchconnectorclient._mountpoint_s3_client import MountpointS3Client

    task.environment()
    return MountpointS3Client(
        region="us-east-1",
        user_agent_prefix="benchmark",
        throughput_target_gbps=10.0,
        part_size=PART,
        endpoint=task.url,
        force_path_style=True,
    )


def s3torchconnector_put(task: Task, body: memoryview) -> Move:
    client = _mountpoint(task)

    def put(number: int) -> None:
        stream = client.put_object(task.bucket, name(number))
        for start in range(0, len(body), 1 << 20):
            stream.write(bytes(body[start : start + (1 << 20)]))  # it takes bytes alone
        stream.close()

    return put


def s3torchconnector_get(task: Task, body: memoryview) -> Move:
    client = _mountpoint(task)

    def get(number: int) -> None:
        at = 0
        for piece in client.get_object(task.bucket, name(number)):
            body[at : at + len(piece)] = piece
            at += len(piece)

    return get


def _obstore(task: Task) -> Any:
    from obstore.store import S3Store

    return S3Store(
        task.bucket,
        endpoint=task.url,
        access_key_id=task.key,
        secret_access_key=task.secret,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


def obstore_put(task: Task, body: memoryview) -> Move:
    import obstore

    store = _obstore(task)
    return lambda number: obstore.put(
        store, name(number), body, use_multipart=True, chunk_size=PART, max_concurrency=CONNECTIONS
    )


def obstore_get(task: Task, body: memoryview) -> Move:
    import obstore

    store = _obstore(task)

    def get(number: int) -> None:
        starts = list(range(0, len(body), PART))
        lengths = [min(PART, len(body) - start) for start in starts]
        found = obstore.get_ranges(store, name(number), starts=starts, lengths=lengths)
        for start, piece in zip(starts, found, strict=True):
            body[start : start + len(piece)] = memoryview(piece)

    return get


def everstep_save(task: Task, body: memoryview) -> Move:
    """What a save moves: copied block by block into shared memory, summed while a block is in the cache, uploaded."""
    quarter = len(body) // 4
    buffers = [SharedBuffer(max(quarter, 1)) for _ in range(4)]
    uploader = Uploader(f"s3://{task.bucket}", replace(task.access, connections=CONNECTIONS))
    uploader.start()
    for number, buffer in enumerate(buffers):
        uploader.submit(f"raw/warm{number}", Segment(buffer, 0, 1)).result(60)

    def save(_: int) -> None:
        under_way = []
        for number, buffer in enumerate(buffers):
            source = body[number * quarter : (number + 1) * quarter]
            sums: list[int] = []
            for start in range(0, quarter, BLOCK):
                block = buffer.view[start : start + BLOCK]
                block[:] = source[start : start + BLOCK]
                sums += block_sums(block)
            under_way.append(uploader.submit(name(number), Segment(buffer, 0, quarter), sums))
        for future in under_way:
            future.result(600)

    return save


def dcp_save(task: Task, body: memoryview) -> Move:
    """torch.distributed.checkpoint.save with s3torchconnector's writer; its client needs an endpoint of its own."""
    import torch
    from s3torchconnector import S3ClientConfig
    from s3torchconnector._s3client import S3Client
    from s3torchconnector.dcp import S3StorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_by_dcp

    task.environment()
    quarter = len(body) // 4
    state = {
        f"tensor{number}": torch.frombuffer(body[number * quarter : (number + 1) * quarter], dtype=torch.uint8)
        for number in range(4)
    }
    config = S3ClientConfig(part_size=PART, force_path_style=True)
    client = S3Client("us-east-1", endpoint=task.url, s3client_config=config)

    def save(number: int) -> None:
        writer = S3StorageWriter("us-east-1", f"s3://{task.bucket}/{name(number)}", config, thread_count=PARALLEL)
        writer.fs._client = client
        save_by_dcp(state, storage_writer=writer, no_dist=True)

    return save


CLIENTS: dict[str, dict[str, Callable[[Task, memoryview], Move]]] = {
    "put": {
        "everstep": everstep_put,
        "everstep, sums made before": everstep_summed_put,
        "everstep uploader process": everstep_uploader_put,
        "boto3": boto3_put,
        "CRT by s3transfer": crt_put,
        "s3torchconnector's client": s3torchconnector_put,
        "obstore": obstore_put,
    },
    "get": {
        "everstep": everstep_get,
        "boto3": boto3_get,
        "CRT by s3transfer": crt_get,
        "s3torchconnector's client": s3torchconnector_get,
        "obstore": obstore_get,
    },
    "save": {
        "everstep: copy, sums, uploader": everstep_save,
        "DCP with s3torchconnector's writer": dcp_save,
    },
}


def cpu_seconds() -> float:
    """Of this process and its living children."""
    found, me = 0.0, os.getpid()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(path.parent.name) == me or int(fields[1]) == me:
            found += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def main() -> None:
    direction, client = sys.argv[1:3]
    task = Task(**json.loads(sys.argv[3]))
    whole = memoryview(bytearray(os.urandom(1 << 20) * (task.size >> 20)))
    CLIENTS[direction][client](task, whole if direction == "get" else whole[:1000])(0)
    move = CLIENTS[direction][client](task, whole)
    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(lambda _: None, range(PARALLEL)))
        cpu, began = cpu_seconds(), time.monotonic()
        list(pool.map(move, range(task.files)))
        wall = time.monotonic() - began
    print(json.dumps({"wall": wall, "cpu": cpu_seconds() - cpu}), flush=True)
    os._exit(0)  # some of these clients wait for their threads


if __name__ == "__main__":
    main()
