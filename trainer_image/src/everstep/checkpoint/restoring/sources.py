"""Which committed checkpoint a run begins with: resume modes, and checkpoints of other jobs."""

from __future__ import annotations

import os

from everstep.catalog import (
    AUTO,
    Entry,
    JobCatalog,
    Location,
    Resume,
    ResumePoint,
    Source,
    Store,
    open_store,
    split_root,
)
from everstep.catalog.fork import resolve
from everstep.checkpoint.gang import Gang
from everstep.errors import CheckpointNotFoundError, InvalidOperationError

RESTARTS = "TORCHELASTIC_RESTART_COUNT"


def restarted(gang: Gang) -> bool:
    """Collective. Whether torchrun has started this worker group again in place: each agent counts the failures of its
    own workers alone, so that rank 0 need not know."""
    return any(gang.all_gather(os.environ.get(RESTARTS, "0") != "0"))


def choose(mode: str, step: int | None, store: Store, again: bool) -> Resume:
    """Where a worker group without an operator begins. `mode`: "auto", "disable", or the path of a checkpoint or of a
    job's root (its latest); `step`: a committed step of this root instead.

    A group that was started `again` in place goes on from what the group before it committed, whatever the mode, and
    so does one whose root was begun from the same path before, also where the other job has gone on since, or has
    removed what it began from. Raises CheckpointNotFoundError.
    """
    if step is not None and mode != "auto":
        raise InvalidOperationError(f"resume_step={step} and resume={mode!r}: pass one of the two")
    if again:
        return AUTO
    if step is not None:
        return Resume(location=entry_of(store, step).location)
    if mode == "auto":
        return AUTO
    if mode == "disable":
        return Resume(fresh=True)
    if "/" not in mode:
        raise InvalidOperationError(f"resume={mode!r}: auto, disable, or the path of a checkpoint: ./{mode}")
    begun = JobCatalog(store).read()
    source = None if begun is None else begun.source
    if begun is not None and source is not None and _is_of(source, mode) and (begun.latest() or begun.begun):
        return AUTO
    choice = resolve(mode, store.uri, open_store, held_by=store.uri)
    return AUTO if choice.source is not None and choice.source == source else choice


def _is_of(source: Source, path: str) -> bool:
    """Whether a path to a checkpoint, or to a root, is where a fork has come from."""
    try:
        root, location = split_root(path)
    except ValueError:
        return False
    return open_store(root).uri == open_store(source.root).uri and location in (None, Location.parse(source.location))


def find(uri: str, step: int | None = None) -> tuple[str, Entry]:
    """The root and entry of a committed checkpoint, by its own path or by its job's root and step (None: the latest).

    Raises CheckpointNotFoundError that lists what is there, InvalidOperationError for a malformed path.
    """
    try:
        root, location = split_root(uri)
    except ValueError as error:
        raise InvalidOperationError(f"{uri}: {error}") from error
    store = open_store(root)
    if location is None:
        return root, entry_of(store, step)
    catalog = JobCatalog(store).read()
    found = None if catalog is None else catalog.find(str(location))
    if found is None or found.state == "quarantined":
        raise CheckpointNotFoundError(f"{uri} is not a committed checkpoint")
    return root, found


def point_of(entry: Entry) -> ResumePoint:
    return ResumePoint(entry.step, entry.location, entry.digest)


def entry_of(store: Store, step: int | None) -> Entry:
    """The live entry of a step (None: the latest). Raises CheckpointNotFoundError that lists what is there."""
    catalog = JobCatalog(store).read()
    if catalog is None:
        raise CheckpointNotFoundError(f"{store.uri} has no catalog.json, so nothing is committed there")
    live = catalog.live()
    found = next((entry for entry in reversed(live) if step in (None, entry.step)), None)
    if found is None:
        what = "nothing" if step is None else f"step {step}"
        steps = ", ".join(str(entry.step) for entry in live) or "none"
        verb = "is committed" if step is None else "is not committed"
        raise CheckpointNotFoundError(f"{what} {verb} in {store.uri}; committed steps: {steps}")
    return found
