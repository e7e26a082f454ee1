"""What storage did to us, as one word and one sentence that a condition can show."""

from __future__ import annotations

from dataclasses import dataclass

from everstep import errors
from everstep_operator.config.profiles import ProfilesError, StorageRefusedError

_REASONS: tuple[tuple[type[Exception], str, bool], ...] = (
    (errors.StorageUnsafeError, "StorageNotConditional", False),
    (errors.StorageRefusedError, "StorageRefused", False),
    (errors.StorageUnavailableError, "StorageUnavailable", True),
    (errors.CatalogMissingError, "CatalogMissing", False),
    (errors.CatalogUnreadableError, "CatalogUnreadable", False),
    (errors.OwnerConflictError, "OwnerConflict", False),
    (errors.CheckpointNotFoundError, "ResumePathNotFound", False),
    (errors.CheckpointCorruptError, "CheckpointCorrupt", False),
    (errors.InvalidOperationError, "StorageInvalid", False),
    (ProfilesError, "StorageProfilesUnreadable", True),
)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why storage could not be used. `transient`: worth trying again without anybody's doing."""

    reason: str
    message: str
    transient: bool


def classify(error: Exception) -> Trouble | None:
    """None for an error that is not storage's: a bug, which must not be shown as a tenant's fault."""
    if isinstance(error, StorageRefusedError):
        return Trouble(error.reason.value, str(error), False)
    for kind, reason, transient in _REASONS:
        if isinstance(error, kind):
            return Trouble(reason, str(error), transient)
    return None
