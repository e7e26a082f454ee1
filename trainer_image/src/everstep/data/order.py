"""A shuffled order that needs no memory: what stands at a place is computed, not looked up.

A permutation of a billion samples held as an array costs each rank eight gigabytes and a minute an epoch. Here each
place goes through a Feistel network keyed by seed and epoch (J. Black and P. Rogaway, Ciphers with Arbitrary Finite
Domains, 2002, the "generalized Feistel" construction), so that any place of any epoch costs the same few microseconds.
The function is part of what a checkpoint means: it must never change.
"""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np
import numpy.typing as npt

from everstep.errors import InvalidOperationError

Places = npt.NDArray[np.int64]

ROUNDS = 16
"""With fewer, not all permutations of a handful of samples are equally likely."""
MOST = 1 << 62
"""Samples: beyond it the arithmetic would leave 64 bits."""


def shuffled(places: Places, length: int, key: tuple[int, ...]) -> Places:
    """Where each of `places` (below `length`) goes, in the permutation of range(length) that `key` names."""
    if not 0 < length < MOST:
        raise InvalidOperationError(f"an order has between 1 and {MOST - 1} places, not {length}")
    if places.size and not 0 <= int(places.min()) <= int(places.max()) < length:
        raise IndexError(f"places from {places.min()} to {places.max()} are not all below {length}")
    found = places.astype(np.uint64)
    columns = math.isqrt(length - 1) + 1
    rows = -(-length // columns)
    keys = _round_keys(key)
    outside = np.ones(found.shape, dtype=bool)
    while outside.any():  # the grid is a little larger than the range: who lands beside it walks on
        found[outside] = _once(found[outside], np.uint64(rows), np.uint64(columns), keys)
        outside = found >= length
    return found.astype(np.int64)


def _once(
    values: npt.NDArray[np.uint64], rows: np.uint64, columns: np.uint64, keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    row, column = np.divmod(values, columns)
    for number, key in enumerate(keys):
        if number % 2:
            column = (column + _mixed(row, key) % columns) % columns
        else:
            row = (row + _mixed(column, key) % rows) % rows
    return row * columns + column


def _mixed(values: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    """SplitMix64's output function (G. Steele et al., Fast Splittable Pseudorandom Number Generators, 2014)."""
    values = values + key
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.lru_cache(maxsize=64)
def _round_keys(key: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    text = f"everstep order {' '.join(map(str, key))}"
    return np.frombuffer(hashlib.shake_128(text.encode()).digest(8 * ROUNDS), dtype="<u8").astype(np.uint64)
