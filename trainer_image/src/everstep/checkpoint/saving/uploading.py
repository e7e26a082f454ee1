"""How staged files get to storage: through the store in this process, or by a process beside it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Stored:
    """Files that storage has acknowledged. `retries`: requests that were sent again; `at`: when the last one was
    stored, on the monotonic clock."""

    retries: int
    at: float


Storing = Callable[[], Stored]
"""Waits until all files are stored. Raises StorageError, once none is under way any more. It may be called again."""


class Upload(Protocol):
    def begin(self, files: Sequence[Keyed]) -> Storing:
        """Store all files. Their bytes must not change before the returned call has ended, whatever else may fail.
        Raises StorageError where none is under way."""

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

    def begin(self, files: Sequence[Keyed]) -> Storing:
        if self._hanging is not None and not self._hanging.done():
            raise StorageUnavailableError(f"{self._store.uri}: a write of an earlier save still hangs")
        self._hanging = None
        stored = Stored(sum(self._put(key, file) for key, file in files), time.monotonic())
        return lambda: stored

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

    def begin(self, files: Sequence[Keyed]) -> Storing:
        self._uploader.start()
        under_way = [self._uploader.submit(key, file.segment, file.sums) for key, file in files]

        def wait() -> Stored:
            errors = [error for each in under_way if (error := each.exception()) is not None]
            if errors:
                raise errors[0]
            done = [each.result() for each in under_way]
            return Stored(sum(each.retries for each in done), max((each.at for each in done), default=time.monotonic()))

        return wait

    def close(self) -> None:
        self._uploader.close(CLOSING_SECONDS)
