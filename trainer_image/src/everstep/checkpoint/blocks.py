"""Checksums of stored bytes: made in blocks when a file is written, checked on whole blocks when part of it is read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from everstep.catalog.manifest import BLOCK, File
from everstep.catalog.store import KeyNotFound
from everstep.catalog.store.threads import begin
from everstep.catalog.verify import block_sums, complaint, wrong_blocks
from everstep.errors import CheckpointCorruptError, StorageUnavailableError

log = logging.getLogger("everstep")

T = TypeVar("T")


class Readable(Protocol):
    """The part of a store that a restore needs."""

    @property
    def uri(self) -> str: ...

    @property
    def retries(self) -> int: ...

    def read_into(self, key: str, start: int, into: memoryview) -> int:
        """As that of `Store`."""


PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, *[10.0] * 10)
"""Seconds between tries, beyond the store's own: about two minutes in all, for a store that is being restarted."""


def describe_file(name: str, body: bytes | bytearray | memoryview, rank: int | None = None) -> File:
    return File(name=name, size=len(body), blocks=block_sums(body), rank=rank)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [start, end) of one file."""

    start: int
    end: int


def covering(start: int, length: int, size: int) -> Span:
    """The whole blocks around `length` bytes from `start` of a file of `size` bytes."""
    return Span(start // BLOCK * BLOCK, min(size, -(-(start + length) // BLOCK) * BLOCK))


def read_verified(store: Readable, key: str, file: File, span: Span) -> bytearray:
    """The bytes of `span` (whole blocks). Raises as `read_verified_into`."""
    body = bytearray(span.end - span.start)
    read_verified_into(store, key, file, span.start, memoryview(body))
    return body


def read_verified_into(store: Readable, key: str, file: File, start: int, into: memoryview) -> int:
    """Fill `into` with whole blocks from `start`, each of which matches the manifest. Returns the bytes fetched.

    Raises CheckpointCorruptError where a block, fetched again, does not match either, or where the object is missing.
    """
    fetched = len(into)
    try:
        wrong = _fill(store, key, file, start, into)
    except KeyNotFound:
        wrong = list(range(start // BLOCK, -(-(start + len(into)) // BLOCK)))
    for block in wrong:
        low = block * BLOCK - start
        again = into[low : low + BLOCK]
        fetched += len(again)
        try:
            still_wrong = _fill(store, key, file, block * BLOCK, again)
        except KeyNotFound:
            raise CheckpointCorruptError(f"{store.uri}/{key} is missing", key, block) from None
        if still_wrong:
            where = f"{store.uri}/{key}".removesuffix(f"/{file.name}")
            raise CheckpointCorruptError(complaint(where, file, block), key, block)
    return fetched


def _fill(store: Readable, key: str, file: File, start: int, into: memoryview) -> list[int]:
    """Read; returns the numbers of the blocks that do not match."""
    count = patiently(lambda: store.read_into(key, start, into))
    return wrong_blocks(file, start, start + len(into), into[:count])


def matching(file: File, start: int, into: memoryview, count: int) -> int:
    """How many bytes of `into` stand before the first block that does not match the manifest. `into`: whole blocks from
    `start` on, of which the first `count` bytes are filled."""
    wrong = wrong_blocks(file, start, start + len(into), into[:count])
    return wrong[0] * BLOCK - start if wrong else len(into)


def read_whole(store: Readable, key: str, file: File) -> bytearray:
    return read_verified(store, key, file, Span(0, file.size))


def connect_early(store: object, count: int) -> None:
    """Begin to open connections, where the store can, while something else is waited for."""
    connect: Callable[[int], None] | None = getattr(store, "connect", None)
    if connect is not None:
        begin(partial(connect, count), "everstep-connect")  # what fails here fails again where it is needed


def patiently(read: Callable[[], T]) -> T:
    """An unreadable object is not a damaged one, and a start is dear: wait for storage before giving up."""
    for pause in PAUSES:
        try:
            return read()
        except StorageUnavailableError as error:
            log.warning("waiting for storage: %s", error)
            time.sleep(pause)
    return read()
