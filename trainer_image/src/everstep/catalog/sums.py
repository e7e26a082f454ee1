"""CRC32C of stored bytes, in blocks, and of many blocks together without reading a byte again."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from awscrt import checksums

BLOCK = 256 << 10
"""Bytes that one CRC32C covers: a partial read verifies whole blocks."""


def block_sums(data: bytes | bytearray | memoryview) -> tuple[int, ...]:
    """CRC32C of each BLOCK bytes of `data`, the last block shorter; nothing for nothing."""
    view = memoryview(data).cast("B")
    return tuple(checksums.crc32c(view[start : start + BLOCK]) for start in range(0, len(view), BLOCK))


def whole_sum(sums: Sequence[int], size: int) -> int:
    """CRC32C of `size` bytes from the sums of their blocks."""
    if len(sums) != -(-size // BLOCK):
        raise ValueError(f"{len(sums)} sums for {size} bytes: expected {-(-size // BLOCK)}")
    whole = 0
    for number, block in enumerate(sums):
        whole = checksums.combine_crc32c(whole, block, min(BLOCK, size - number * BLOCK))
    return whole


def header(value: int) -> str:
    """As S3 writes it: big-endian, base64."""
    return base64.b64encode(value.to_bytes(4, "big")).decode()
