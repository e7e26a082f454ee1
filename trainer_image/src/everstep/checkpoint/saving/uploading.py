"""How staged files get to storage: through the store in this process, or by a process beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Protocol

from everstep.catalog import Store
from everstep.catalog.store.threads import begin
from everstep.checkpoint.saving.staging import StagedFile
from everstep.errors import StorageUnavailableError
from everstep.transfer import Uploader

log = logging.getLogger("everstep")

Keyed = tuple[str, StagedFile]
SILENT = 30.0
"""Seconds after which a write that goes on is told of."""
PATIENCE = 120.0
SLOWEST = 1 << 20
"""A write is given up after so many seconds, and one more for so many bytes."""
CLOSING_SECONDS = 5.0
"""How long a process that has nothing left to do may take to end."""


Stored = Callable[[], int]
"""Waits until all files are stored; returns how many requests were sent again. Raises StorageError, once none is under
way any more."""


class Upload(Protocol):
    def begin(self, files: Sequence[Keyed]) -> Stored:
        """Store all files. Whoever begins waits, once, whatever else may fail: till then the bytes must not change.
        Raises StorageError where nothing was begun."""

    def close(self) -> None:
        """Nothing is under way any more, or nobody waits for it."""


class DirectUpload:
    """One file after the other, in this process: for a directory, and for a store of the user's own.

    A write to a file system that hangs cannot be interrupted. It is left to itself, and the save fails; what it writes
    yet belongs to no checkpoint. Until it comes back no other is begun.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hanging: Future[int] | None = None

    def begin(self, files: Sequence[Keyed]) -> Stored:
        if self._hanging is not None and not self._hanging.done():
            raise StorageUnavailableError(f"{self._store.uri}: a write of an earlier save still hangs")
        self._hanging = None
        retries = sum(self._put(key, file) for key, file in files)
        return lambda: retries

    def _put(self, key: str, file: StagedFile) -> int:
        limit = PATIENCE + file.segment.length / SLOWEST
        writing = begin(lambda: self._store.put(key, file.segment.view, file.sums), "everstep-write")
        if not wait([writing], SILENT).done:
            log.warning(
                "%s/%s: %.0f MiB are not written after %.0f s; they are given up after %.0f s",
                *(self._store.uri, key, file.segment.length / 2**20, SILENT, limit),
            )
            if not wait([writing], limit - SILENT).done:
                self._hanging = writing
                raise StorageUnavailableError(
                    f"{self._store.uri}/{key}: not written within {limit:.0f} s: does the file system hang?"
                )
        return writing.result()

    def close(self) -> None:
        pass


class ProcessUpload:
    """By the uploader's process, so that the interpreter of the trainer stays free. It is started by the first save,
    and again where it has died."""

    def __init__(self, uri: str) -> None:
        self._uploader = Uploader(uri)

    def begin(self, files: Sequence[Keyed]) -> Stored:
        self._uploader.start()
        under_way = [self._uploader.submit(key, file.segment, file.sums) for key, file in files]

        def stored() -> int:
            errors = [error for each in under_way if (error := each.exception()) is not None]
            if errors:
                raise errors[0]
            return sum(each.result().retries for each in under_way)

        return stored

    def close(self) -> None:
        self._uploader.close(CLOSING_SECONDS)
