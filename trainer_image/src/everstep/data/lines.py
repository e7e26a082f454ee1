"""Lines of local files and stored objects as records; a place is a byte offset, so a resume seeks."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from everstep.catalog.store import Store, open_store
from everstep.catalog.store.base import KeyNotFound
from everstep.errors import InvalidOperationError, StorageRefusedError

PIECE = 4 << 20
"""Bytes that are read at once."""


def pieces(store: Store, key: str, start: int = 0) -> Iterator[bytes]:
    """An object from `start` to its end. Raises InvalidOperationError where it cannot be read and never could."""
    while piece := _range(store, key, start):
        yield piece
        start += len(piece)


def _range(store: Store, key: str, start: int) -> bytes:
    try:
        return store.get_range(key, start, PIECE)
    except KeyNotFound:
        raise InvalidOperationError(f"{store.uri}/{key} is gone: it was there when the run began") from None
    except StorageRefusedError as error:
        raise InvalidOperationError(f"{store.uri}/{key} cannot be read: {error}") from error


def split_lines(parts: Iterator[bytes], start: int = 0) -> Iterator[tuple[bytes, int]]:
    """Lines without their ends, each with where the next one begins. The last one needs no end."""
    rest = b""
    for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            start += len(line) + 1
            yield line.removesuffix(b"\r"), start
    if rest:
        yield rest.removesuffix(b"\r"), start + len(rest)


class Lines:
    """A source for `StreamBatches`: the lines of `uris` (paths, or s3:// URIs of objects), empty ones left out."""

    def __init__(self, uris: Sequence[str | Path]) -> None:
        self._uris = tuple(str(uri) for uri in uris)
        twice = {uri for uri in self._uris if self._uris.count(uri) > 1} if len(set(self._uris)) < len(uris) else set()
        if twice:
            raise InvalidOperationError(f"shards: {', '.join(sorted(twice)[:3])} named more than once")

    @property
    def shards(self) -> Sequence[str]:
        return self._uris

    def read(self, shard: str, at: int) -> Iterator[tuple[bytes, int]]:
        parent, _, name = shard.rpartition("/")
        store = _open(parent or ("/" if shard.startswith("/") else "."), os.getpid())
        return ((line, end) for line, end in split_lines(pieces(store, name, at), at) if line.strip())

    def fingerprint(self) -> str:
        """Of the shards' names and sizes. Raises InvalidOperationError for one that is not there."""
        hashed = hashlib.sha256()
        for uri in self._uris:
            hashed.update(f"{uri.rpartition('/')[2]} {_size(uri)}\n".encode())
        return hashed.hexdigest()[:32]


@functools.lru_cache(maxsize=64)
def _open(uri: str, process: int) -> Store:
    """One a process: connections must not be shared with a forked worker."""
    return open_store(uri)


def _size(uri: str) -> int:
    parent, _, name = uri.rpartition("/")
    if "://" not in uri:
        try:
            return Path(uri).stat().st_size
        except OSError as error:
            raise InvalidOperationError(f"shards: {uri}: {error.strerror}") from error
    for info in _open(parent, os.getpid()).list(name):
        if info.key == name:
            return info.size
    raise InvalidOperationError(f"shards: {uri} does not exist")
