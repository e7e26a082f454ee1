"""Checksums of stored bytes: made in blocks when a file is written, checked on whole blocks when part of it is read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from everstep.catalog.manifest import BLOCK, File
from everstep.catalog.store import KeyNotFound, Store
from everstep.catalog.verify import block_sums, complaint, wrong_blocks
from everstep.errors import CheckpointCorruptError, StorageUnavailableError

log = logging.getLogger("everstep")

T = TypeVar("T")

GAP = 1 << 20
"""Ranges this near to each other are fetched by one request."""
PIECE = 128 << 20
"""Ranges are not joined beyond this many bytes."""
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


def join(spans: Iterable[Span], gap: int = GAP, piece: int = PIECE) -> list[Span]:
    """Fewer, larger spans in ascending order; every given span lies in just one of them."""
    joined: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.start, s.end)):
        last = joined[-1] if joined else None
        if last is not None and (
            span.start < last.end or (span.start - last.end <= gap and span.end - last.start <= piece)
        ):
            joined[-1] = Span(last.start, max(last.end, span.end))
        else:
            joined.append(span)
    return joined


def read_verified(store: Store, key: str, file: File, span: Span) -> bytes:
    """The bytes of `span` (whole blocks), each of which matches the manifest.

    Raises CheckpointCorruptError after a second fetch that does not match either, or where the object is missing.
    """
    found = ""
    for _ in range(2):
        try:
            body = patiently(lambda: store.get_range(key, span.start, span.end - span.start))
        except KeyNotFound:
            found = f"{store.uri}/{key} is missing"
            continue
        wrong = wrong_blocks(file, span.start, span.end, body)
        if not wrong:
            return body
        found = complaint(f"{store.uri}/{key}".removesuffix(f"/{file.name}"), file, wrong[0])
    raise CheckpointCorruptError(found)


def check_blocks(file: File) -> None:
    if len(file.blocks) != -(-file.size // BLOCK):
        raise CheckpointCorruptError(
            f"the manifest lists {len(file.blocks)} blocks for the {file.size} bytes of {file.name}"
        )


def read_whole(store: Store, key: str, file: File) -> bytes:
    check_blocks(file)
    return read_verified(store, key, file, Span(0, file.size)) if file.size else b""


def patiently(read: Callable[[], T]) -> T:
    """An unreadable object is not a damaged one, and a start is dear: wait for storage before giving up."""
    for pause in PAUSES:
        try:
            return read()
        except StorageUnavailableError as error:
            log.warning("waiting for storage: %s", error)
            time.sleep(pause)
    return read()
