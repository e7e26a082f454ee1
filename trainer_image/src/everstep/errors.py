"""The errors that everstep raises, in one place and without torch, so that all can catch them by type."""

from __future__ import annotations


class CheckpointError(Exception):
    """Base class of everything that everstep raises on purpose."""


class CheckpointNotFoundError(CheckpointError):
    """The requested checkpoint is not committed here."""


class CheckpointCorruptError(CheckpointError):
    """Stored bytes do not have the digest that was committed for them.

    `key` and `block`: of the object, below its root, and the number of its first wrong block, where they are known.
    """

    def __init__(self, message: str, key: str | None = None, block: int = 0) -> None:
        super().__init__(message)
        self.key = key
        self.block = block


class InvalidOperationError(CheckpointError):
    """The call does not fit the state that it was made in, or the value that it was given."""


class CheckpointUnreadableError(InvalidOperationError):
    """Stored bytes are those that were committed, and still no checkpoint that this version understands. Nothing is
    damaged, so nothing is set aside."""


class FencedError(CheckpointError):
    """A newer attempt or worker group has taken this job over: this process may commit nothing any more."""


class CatalogMissingError(CheckpointError):
    """The register is gone although checkpoints exist: nothing may be created over them."""


class CatalogUnreadableError(CheckpointError):
    """The register is not a document that this version can read: too large, damaged, or of a newer format."""


class CatalogFormatError(CatalogUnreadableError):
    """The register is another version's, and nothing is wrong with it."""


class OwnerConflictError(CheckpointError):
    """The register belongs to another cluster, namespace or name."""


class StorageError(CheckpointError):
    """Base class of what object storage does to us."""


class StorageUnavailableError(StorageError):
    """No answer, or an answer that says "later": worth trying again."""


class UploaderDiedError(StorageUnavailableError):
    """The process that uploads ended before an object was stored: the next save starts another."""


class StorageRefusedError(StorageError):
    """An answer that stays the same until somebody changes credentials, bucket or policy."""


class StorageUnsafeError(StorageError):
    """The store does not enforce conditional writes: a register kept there could lose a commit."""


class TornStateError(CheckpointError):
    """Live tensors may hold a part of what could not be loaded: they are not saved. A new process begins whole."""


class SavesFailedError(StorageError):
    """No save has succeeded for as long as the job allows."""


class ArchitectureMismatchError(CheckpointError):
    """The checkpoint holds tensors of other names or shapes than the model."""
