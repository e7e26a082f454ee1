"""A store that breaks one rule is refused by that rule's name. The liars are wrappers: no real store lies on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from everstep.catalog.store import SwapRefused, SwapUnanswered, Versioned
from everstep.catalog.store.posix import PosixStore
from everstep.catalog.store.probe import probe
from everstep.errors import StorageUnavailableError, StorageUnsafeError


class Unconditional(PosixStore):
    """Ignores the conditions that it is told to, as stores without conditional writes do."""

    ignore_absent = False
    ignore_match = False

    def swap_register(self, key: str, body: bytes, token: str | None) -> str:
        try:
            return super().swap_register(key, body, token)
        except SwapRefused:
            if (token is None and not self.ignore_absent) or (token is not None and not self.ignore_match):
                raise
            now: Any = self.read_register(key)
            return super().swap_register(key, body, now.token if isinstance(now, Versioned) else None)


def test_a_store_without_if_none_match_is_refused(tmp_path: Path) -> None:
    store = Unconditional(tmp_path)
    store.ignore_absent = True
    with pytest.raises(StorageUnsafeError, match=r"If-None-Match"):
        probe(store)


def test_a_store_without_if_match_is_refused(tmp_path: Path) -> None:
    store = Unconditional(tmp_path)
    store.ignore_match = True
    with pytest.raises(StorageUnsafeError, match=r"If-Match"):
        probe(store)


def test_silence_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(self: PosixStore, key: str, body: bytes, token: str | None) -> str:
        raise SwapUnanswered("timed out")

    monkeypatch.setattr(PosixStore, "swap_register", silent)
    with pytest.raises(StorageUnavailableError, match="timed out"):
        probe(PosixStore(tmp_path))
