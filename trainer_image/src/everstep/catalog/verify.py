"""Every byte of a save against the sums that were committed for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from everstep.catalog.keys import Location
from everstep.catalog.manifest import File, Manifest
from everstep.catalog.store import KeyNotFound, Store
from everstep.catalog.sums import BLOCK
from everstep.catalog.sums import block_sums as block_sums
from everstep.errors import CheckpointCorruptError

CHUNK = 32 * BLOCK
"""Bytes of one read: 8 MiB."""


def wrong_blocks(file: File, start: int, end: int, data: bytes | bytearray | memoryview) -> list[int]:
    """Numbers of the blocks in which `data`, read for the bytes [start, end), is not what was committed; those that it
    does not reach, and the last one where it goes beyond.

    `start` is a multiple of BLOCK; `end` is one too, or the file's end.
    """
    first, last = start // BLOCK, -(-end // BLOCK) - 1
    committed = file.blocks[first : last + 1]
    sums = block_sums(data if len(data) == end - start else data[: len(data) // BLOCK * BLOCK])
    wrong = [first + number for number, value in enumerate(committed) if sums[number : number + 1] != (value,)]
    return wrong if wrong or len(data) <= end - start else [max(first, last)]


def complaint(where: str, file: File, block: int) -> str:
    """A sentence that names the first wrong bytes."""
    start = block * BLOCK
    last = min(start + BLOCK, file.size) - 1
    return f"{where}/{file.name}: bytes {start} to {last} are not those that were committed"


def find_damage(
    store: Store,
    manifest: Manifest,
    on_bytes: Callable[[int], None] = lambda _: None,
    at_once: int = 4,
) -> list[str]:
    """Read every byte of every file of a save, `at_once` pieces at the same time. One sentence a damaged file.

    Raises StorageUnavailableError or StorageRefusedError as the store does: what cannot be read is not damage.
    """
    location = Location.parse(manifest.location)
    pieces = [(file, start) for file in manifest.files for start in range(0, max(file.size, 1), CHUNK)]
    wrong: dict[str, list[int]] = {}
    with ThreadPoolExecutor(at_once) as pool:
        try:
            found = pool.map(lambda piece: _check_piece(store, location, piece[0], piece[1], on_bytes), pieces)
            for (file, _), blocks in zip(pieces, found, strict=True):
                if blocks:
                    wrong.setdefault(file.name, []).extend(blocks)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    where = f"{store.uri}/{location}"
    return [_summary(where, file, wrong[file.name]) for file in manifest.files if file.name in wrong]


_MISSING = -1


def _check_piece(
    store: Store, location: Location, file: File, start: int, on_bytes: Callable[[int], None]
) -> list[int]:
    end = min(start + CHUNK, file.size)
    beyond = int(end == file.size)  # one byte more than was committed is damage as well
    try:
        data = store.get_range(location.key(file.name), start, end - start + beyond)
    except KeyNotFound:
        return [_MISSING]
    on_bytes(len(data))
    return wrong_blocks(file, start, end, data)


def _summary(where: str, file: File, blocks: list[int]) -> str:
    if _MISSING in blocks:
        return f"{where}/{file.name} is missing"
    more = f" (and {len(blocks) - 1} more of its {len(file.blocks)} blocks)" if len(blocks) > 1 else ""
    return complaint(where, file, blocks[0]) + more


def verify_save(store: Store, manifest: Manifest, on_bytes: Callable[[int], None] = lambda _: None) -> None:
    """Raises CheckpointCorruptError that names what `find_damage` finds."""
    damage = find_damage(store, manifest, on_bytes)
    if damage:
        raise CheckpointCorruptError("; ".join(damage))
