"""What storage did to us, as a problem that a decision can be made on and a condition can show."""

from __future__ import annotations

from everstep import errors
from everstep_operator.config.profiles import ProfilesError, StorageRefusedError
from everstep_operator.reconcile.observation import Problem, ProblemKind

_KINDS: tuple[tuple[type[Exception], ProblemKind, str], ...] = (
    (errors.StorageUnsafeError, ProblemKind.UNSAFE, "StorageNotConditional"),
    (errors.StorageRefusedError, ProblemKind.REFUSED, "StorageRefused"),
    (errors.StorageUnavailableError, ProblemKind.UNAVAILABLE, "StorageUnavailable"),
    (errors.CatalogMissingError, ProblemKind.CATALOG_MISSING, "CatalogMissing"),
    (errors.CatalogUnreadableError, ProblemKind.CATALOG_UNREADABLE, "CatalogUnreadable"),
    (errors.OwnerConflictError, ProblemKind.OWNER_CONFLICT, "OwnerConflict"),
    (errors.CheckpointNotFoundError, ProblemKind.RESUME_NOT_FOUND, "ResumePathNotFound"),
    (errors.CheckpointCorruptError, ProblemKind.RESUME_NOT_FOUND, "ResumePathCorrupt"),
    (errors.InvalidOperationError, ProblemKind.CATALOG_UNREADABLE, "StorageInvalid"),
    (ProfilesError, ProblemKind.UNAVAILABLE, "StorageProfilesUnreadable"),
)
_ABOUT_A_PATH = {ProblemKind.REFUSED, ProblemKind.CATALOG_UNREADABLE, ProblemKind.CATALOG_MISSING}


def classify(error: Exception) -> Problem | None:
    """None for an error that is not storage's: a bug, which must not be shown as a tenant's fault."""
    if isinstance(error, StorageRefusedError):
        return Problem(ProblemKind.REFUSED, error.reason.value, str(error))
    for kind, problem, reason in _KINDS:
        if isinstance(error, kind):
            return Problem(problem, reason, str(error))
    return None


def classify_resume_path(error: Exception) -> Problem | None:
    """The same for another job's root that `resume.path` names: what is wrong there for good is the path's fault."""
    problem = classify(error)
    if problem is None or problem.kind not in _ABOUT_A_PATH:
        return problem
    reason = "ResumePathInvalid" if isinstance(error, errors.InvalidOperationError) else problem.reason
    message = problem.message.removeprefix("resume.path: ")
    return Problem(ProblemKind.RESUME_NOT_FOUND, reason, f"resume.path: {message}")
