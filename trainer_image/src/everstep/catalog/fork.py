"""Where `resume.fromPath` points: a checkpoint of this job, or one of another job, which is then held there."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from everstep.catalog.documents import Entry, Source
from everstep.catalog.job import JobCatalog
from everstep.catalog.keys import split_root
from everstep.catalog.store import Store
from everstep.catalog.transitions import Resume
from everstep.errors import CheckpointNotFoundError, InvalidOperationError

HOLD = timedelta(days=7)
"""How long a fork keeps its source; each attempt that still starts from it begins this time anew."""


def resolve(path: str, own_root: str, open_root: Callable[[str], Store], held_by: str) -> Resume:
    """The resume choice for a path to a checkpoint, or to a job's root (its latest committed step).

    Raises CheckpointNotFoundError where nothing committed stands there, InvalidOperationError for a malformed path.
    """
    try:
        root, location = split_root(path)
    except ValueError as error:
        raise InvalidOperationError(f"resume.path: {error}") from error
    job = JobCatalog(open_root(root))
    catalog = job.read()
    if catalog is None:
        raise CheckpointNotFoundError(f"resume.path: {root} has no catalog.json, so nothing is committed there")
    entry = catalog.latest() if location is None else catalog.find(str(location))
    if entry is None or entry.state == "quarantined":
        raise CheckpointNotFoundError(
            f"resume.path: {path} is not committed; committed there: {_offers(catalog.live())}"
        )
    job.check_manifest(entry)
    root = job.store.uri  # one spelling of it: a relative path means another place to the next process
    if root == own_root.rstrip("/"):
        return Resume(location=entry.location)
    if entry.state == "live":  # what is set aside is removed by nobody but a user
        job.hold(entry.location, held_by, datetime.now(UTC) + HOLD)
    return Resume(source=Source(root=root, location=entry.location, step=entry.step, digest=entry.digest))


def renew(source: Source, open_root: Callable[[str], Store], held_by: str) -> None:
    """Hold a fork's source for another HOLD. Raises CheckpointNotFoundError where it is not live there any more."""
    JobCatalog(open_root(source.root)).hold(source.location, held_by, datetime.now(UTC) + HOLD)


def _offers(live: list[Entry]) -> str:
    return ", ".join(f"step {entry.step} ({entry.location})" for entry in live[-5:]) or "nothing"
