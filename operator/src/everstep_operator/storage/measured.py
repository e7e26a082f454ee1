"""A store that tells of each request, by what came of it and how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from everstep.catalog import Store, Unchanged
from everstep.catalog.store import KeyNotFound, ObjectInfo, SwapRefused, SwapUnanswered, Versioned, never
from everstep.errors import StorageRefusedError, StorageUnavailableError

Told = Callable[[str, str, float], None]
"""Called with the kind of a request, its result and its seconds, in the thread that made it."""

_RESULTS: tuple[tuple[type[Exception], str], ...] = (
    (KeyNotFound, "missing"),
    (SwapRefused, "refused"),
    (SwapUnanswered, "unanswered"),
    (StorageRefusedError, "denied"),
    (StorageUnavailableError, "unavailable"),
)


class MeasuredStore:
    """Another store, with its requests told of."""

    def __init__(self, store: Store, told: Told) -> None:
        self._store = store
        self._told = told

    @property
    def uri(self) -> str:
        return self._store.uri

    @property
    def retries(self) -> int:
        return self._store.retries

    def read_register(self, key: str, known: str | None = None) -> Versioned | Unchanged | None:
        with self._measured("read_register"):
            return self._store.read_register(key, known)

    def swap_register(self, key: str, body: bytes, token: str | None) -> str:
        with self._measured("swap_register"):
            return self._store.swap_register(key, body, token)

    def get(self, key: str, limit: int | None = None) -> bytes:
        with self._measured("get"):
            return self._store.get(key, limit)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        with self._measured("get"):
            return self._store.get_range(key, start, length)

    def read_into(self, key: str, start: int, into: memoryview) -> int:
        with self._measured("get"):
            return self._store.read_into(key, start, into)

    def put(self, key: str, body: bytes | bytearray | memoryview, sums: Sequence[int] = ()) -> int:
        with self._measured("put"):
            return self._store.put(key, body, sums)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._measured("list"):
            yield from self._store.list(prefix)

    def list_folders(self, prefix: str) -> Iterator[str]:
        with self._measured("list"):
            yield from self._store.list_folders(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        with self._measured("delete"):
            self._store.delete(keys)

    def abort_uploads(self, prefix: str, older_than: datetime, dead: Callable[[str], bool] = never) -> int:
        with self._measured("abort_uploads"):
            return self._store.abort_uploads(prefix, older_than, dead)

    @contextmanager
    def _measured(self, kind: str) -> Iterator[None]:
        began, result = time.perf_counter(), "error"
        try:
            yield
            result = "ok"
        except GeneratorExit:  # whoever lists has seen enough
            result = "ok"
            raise
        except Exception as error:
            result = next((name for known, name in _RESULTS if isinstance(error, known)), "error")
            raise
        finally:
            self._told(kind, result, time.perf_counter() - began)
