"""Sums of blocks, put together, are the sum of the whole."""

from __future__ import annotations

import base64

import pytest
from awscrt import checksums
from hypothesis import given
from hypothesis import strategies as st

from everstep.catalog.store.s3_objects import MOST_PARTS, PART, part_size
from everstep.catalog.sums import BLOCK, block_sums, header, whole_sum


@given(st.binary(min_size=1, max_size=64), st.integers(0, 3 * BLOCK), st.integers(0, 3))
def test_the_sum_of_the_whole_needs_no_second_look(seed: bytes, size: int, first: int) -> None:
    data = (seed * (size // len(seed) + 1))[:size]
    sums = block_sums(data)
    assert whole_sum(sums, size) == checksums.crc32c(data)
    start = min(first * BLOCK, size)
    assert whole_sum(sums[first:], size - start) == checksums.crc32c(data[start:])


def test_sums_of_another_length_are_no_sums() -> None:
    with pytest.raises(ValueError, match="2 sums for 1 bytes"):
        whole_sum([1, 2], 1)


def test_a_header_is_as_s3_writes_it() -> None:
    assert header(checksums.crc32c(b"123456789")) == base64.b64encode(bytes.fromhex("e3069283")).decode()


@given(st.integers(1, 5 << 40))
def test_parts_are_whole_blocks_and_no_more_than_s3_takes(size: int) -> None:
    part = part_size(size)
    assert part % BLOCK == 0
    assert -(-size // part) <= MOST_PARTS
    assert part == PART or size > PART * MOST_PARTS
