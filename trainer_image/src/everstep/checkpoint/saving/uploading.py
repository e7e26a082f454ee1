"""How staged files get to storage: through the store in this process, or by a process beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from everstep.catalog import Store
from everstep.checkpoint.saving.staging import StagedFile
from everstep.transfer import Uploader

Keyed = tuple[str, StagedFile]
CLOSING_SECONDS = 5.0
"""How long a process that has nothing left to do may take to end."""


class Upload(Protocol):
    def put(self, files: Sequence[Keyed]) -> int:
        """Store all files; returns how many requests were sent again. Raises StorageError."""

    def close(self) -> None:
        """Nothing is under way any more, or nobody waits for it."""


class DirectUpload:
    """One file after the other, by the calling thread: for a directory, and for a store of the user's own."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, files: Sequence[Keyed]) -> int:
        return sum(self._store.put(key, file.segment.view, file.sums) for key, file in files)

    def close(self) -> None:
        pass


class ProcessUpload:
    """By the uploader's process, so that the interpreter of the trainer stays free. It is started by the first save,
    and again where it has died."""

    def __init__(self, uri: str) -> None:
        self._uploader = Uploader(uri)

    def put(self, files: Sequence[Keyed]) -> int:
        self._uploader.start()
        under_way = [self._uploader.submit(key, file.segment, file.sums) for key, file in files]
        errors = [error for each in under_way if (error := each.exception()) is not None]  # all end before any raises
        if errors:
            raise errors[0]
        return sum(each.result().retries for each in under_way)

    def close(self) -> None:
        self._uploader.close(CLOSING_SECONDS)
