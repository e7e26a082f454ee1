"""Every byte of a save against the sums that were committed for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from everstep.catalog.keys import Location
from everstep.catalog.manifest import File, Manifest
from everstep.catalog.store import KeyNotFound, Store
from everstep.catalog.sums import BLOCK
from everstep.catalog.sums import block_sums as block_sums
from everstep.errors import CheckpointCorruptError

CHUNK = 32 * BLOCK
"""Bytes of one read: 8 MiB."""


def wrong_blocks(file: File, start: int, end: int, data: bytes | bytearray | memoryview) -> list[int]:
    """Numbers of the blocks in which `data`, read for the bytes [start, end), is not what was committed.

    `start` is a multiple of BLOCK; `end` is one too, or the file's end.
    """
    first = start // BLOCK
    if len(data) != end - start:
        return [first + len(data) // BLOCK]
    committed = file.blocks[first : first + -(-len(data) // BLOCK)]
    found = block_sums(data)
    if len(committed) != len(found):
        return [first + len(committed)]
    return [first + index for index, pair in enumerate(zip(found, committed, strict=True)) if pair[0] != pair[1]]


def complaint(where: str, file: File, block: int) -> str:
    """A sentence that names the first wrong bytes."""
    start = block * BLOCK
    last = min(start + BLOCK, file.size) - 1
    return f"{where}/{file.name}: bytes {start} to {last} are not those that were committed"


def verify_file(store: Store, location: Location, file: File) -> Iterator[int]:
    """Read one file whole; yields the bytes verified so far in steps. Raises CheckpointCorruptError."""
    key = location.key(file.name)
    where = f"{store.uri}/{location}"
    for start in range(0, max(file.size, 1), CHUNK):
        try:
            data = store.get_range(key, start, CHUNK)
        except KeyNotFound as error:
            raise CheckpointCorruptError(f"{where}/{file.name} is missing") from error
        wrong = wrong_blocks(file, start, min(start + CHUNK, file.size), data)
        if wrong:
            raise CheckpointCorruptError(complaint(where, file, wrong[0]))
        yield len(data)


def verify_save(store: Store, manifest: Manifest, on_bytes: Callable[[int], None] = lambda _: None) -> None:
    """Read every file of a save. Raises CheckpointCorruptError at the first byte that is wrong or missing."""
    location = Location.parse(manifest.location)
    for file in manifest.files:
        for count in verify_file(store, location, file):
            on_bytes(count)
