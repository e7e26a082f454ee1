"""Every byte of a save against the sums that were committed for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from awscrt import checksums

from everstep.catalog.keys import Location
from everstep.catalog.manifest import BLOCK, File, Manifest
from everstep.catalog.store import KeyNotFound, Store
from everstep.errors import CheckpointCorruptError

CHUNK = 32 * BLOCK
"""Bytes of one read: 8 MiB."""


def block_sums(data: bytes | bytearray | memoryview) -> tuple[int, ...]:
    """CRC32C of each BLOCK bytes of `data`, the last block shorter; nothing for nothing."""
    view = memoryview(data).cast("B")
    return tuple(checksums.crc32c(view[start : start + BLOCK]) for start in range(0, len(view), BLOCK))


def check_blocks(file: File, first: int, data: bytes | bytearray | memoryview, where: str) -> None:
    """`data` are whole blocks of `file` from block `first` on. Raises CheckpointCorruptError naming the first bad
    byte range.
    """
    for index, found in enumerate(block_sums(data), start=first):
        if index >= len(file.blocks) or file.blocks[index] != found:
            start = index * BLOCK
            raise CheckpointCorruptError(
                f"{where}/{file.name}: bytes {start} to {min(start + BLOCK, file.size) - 1} "
                "are not those that were committed"
            )


def verify_file(store: Store, location: Location, file: File) -> Iterator[int]:
    """Read one file whole; yields the bytes verified so far in steps. Raises CheckpointCorruptError."""
    key = location.key(file.name)
    where = f"{store.uri}/{location}"
    for start in range(0, max(file.size, 1), CHUNK):
        try:
            data = store.get_range(key, start, CHUNK)
        except KeyNotFound as error:
            raise CheckpointCorruptError(f"{where}/{file.name} is missing") from error
        if len(data) != min(CHUNK, file.size - start):
            raise CheckpointCorruptError(f"{where}/{file.name} has not the {file.size} bytes that were committed")
        check_blocks(file, start // BLOCK, data, where)
        yield len(data)


def verify_save(store: Store, manifest: Manifest, on_bytes: Callable[[int], None] = lambda _: None) -> None:
    """Read every file of a save. Raises CheckpointCorruptError at the first byte that is wrong or missing."""
    location = Location.parse(manifest.location)
    for file in manifest.files:
        for count in verify_file(store, location, file):
            on_bytes(count)
