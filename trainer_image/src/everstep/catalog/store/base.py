"""What a store has to offer. Two kinds of object, kept apart on purpose: a *register* is small and changes only by
compare-and-swap under a token that the store owns; every other object is written once and never overwritten (the
heartbeat excepted). A swap has three ends: applied, refused, unanswered; who treats the last two alike is always
right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Versioned:
    """A register's body with the token that a swap of exactly this version needs."""

    body: bytes
    token: str


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    key: str
    size: int
    modified: datetime | None = None


class Unchanged(Enum):
    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED


class SwapRefused(Exception):
    """The store says that the token does not fit: changed, absent or already there."""


class SwapUnanswered(Exception):
    """No answer, or one that does not tell: the swap may have been applied, may be applied yet, or never."""


class KeyNotFound(Exception):
    """No object has this key."""


def never(_: str) -> bool:
    """Of no key is it certain that nobody writes it any more."""
    return False


class Store(Protocol):
    """Everything below one root. Keys are relative, with forward slashes.

    All methods raise StorageRefusedError or StorageUnavailableError beside what they name. None of them retries a swap.
    """

    @property
    def uri(self) -> str: ...

    @property
    def retries(self) -> int:
        """How many requests were sent again since the store was opened, by whatever thread."""

    def read_register(self, key: str, known: str | None = None) -> Versioned | Unchanged | None:
        """The newest version, or None. With `known`, UNCHANGED where the register still has that token."""

    def swap_register(self, key: str, body: bytes, token: str | None) -> str:
        """Replace the version named by `token` (None: create). Returns the new token.

        Raises SwapRefused or SwapUnanswered.
        """

    def get(self, key: str, limit: int | None = None) -> bytes:
        """A whole object; raises KeyNotFound, or InvalidOperationError where it is longer than `limit` bytes."""

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; fewer only at the object's end. Raises KeyNotFound."""

    def read_into(self, key: str, start: int, into: memoryview) -> int:
        """Fill `into` (writable, contiguous) with the object's bytes from `start`, without a copy in between.

        Returns how many there were: fewer than `into` has only at the object's end. Raises KeyNotFound. After any
        error `into` holds anything.
        """

    def put(self, key: str, body: bytes | bytearray | memoryview, sums: Sequence[int] = ()) -> int:
        """Write a whole object of any size, without a copy of `body`, which must not change until this returns.

        `sums`: the CRC32C of each BLOCK bytes of `body` where the caller has them, so that they are not made again; a
        store that can checks by them what it received. Returns how many requests had to be sent again. Nothing is
        left of an object that failed but, where storage could not be reached any more, an unfinished upload that
        `abort_uploads` ends.
        """

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose keys begin with `prefix`, in key order."""

    def list_folders(self, prefix: str) -> Iterator[str]:
        """The distinct keys up to the first slash behind `prefix` (which ends in a slash), without that slash.

        Some stores still name a folder whose objects are all deleted: who asks whether anything is there uses `list`.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; an absent key is no error."""

    def abort_uploads(self, prefix: str, older_than: datetime, dead: Callable[[str], bool] = never) -> int:
        """Abort unfinished uploads of keys that begin with `prefix`: those begun before `older_than`, and those whose
        key is `dead` whenever they began. Returns how many.
        """
