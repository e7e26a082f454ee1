"""Where a job's first attempt starts. Every later one resumes what the job itself committed, whatever the spec says."""

from __future__ import annotations

from everstep.catalog import AUTO, Catalog, Entry, Location, Resume, Source
from everstep.errors import CheckpointNotFoundError
from everstep_operator.reconcile.attempt import own
from everstep_operator.reconcile.observation import Observation


def is_first(observation: Observation) -> bool:
    """Whether this job (by its uid) has never fenced its root."""
    return observation.job.status.attempt == 0 and own(observation) is None


def path(observation: Observation) -> str | None:
    """What has to be looked up before the fence."""
    spec = observation.job.spec.resume
    return spec.path if spec.mode == "fromPath" and is_first(observation) else None


def mode(observation: Observation) -> Resume:
    """What to give to the fence; `Results.resume` where there was a path to look up."""
    if not is_first(observation):
        return AUTO
    if observation.job.spec.resume.mode == "disable":
        return Resume(fresh=True)
    return observation.results.resume or AUTO


def choose(own_root: str, root: str, location: Location | None, catalog: Catalog | None) -> Resume:
    """The answer to a path that names `location` (None: the latest commit) below `root`, whose catalog this is.

    Raises CheckpointNotFoundError, saying what is there instead.
    """
    if catalog is None:
        raise CheckpointNotFoundError(f"resume.path: {root} holds no everstep catalog")
    entry = _entry(root, location, catalog)
    if root.rstrip("/") == own_root.rstrip("/"):
        return Resume(location=entry.location)
    return Resume(source=Source(root=root.rstrip("/"), location=entry.location, step=entry.step, digest=entry.digest))


def _entry(root: str, location: Location | None, catalog: Catalog) -> Entry:
    if location is None:
        latest = catalog.latest()
        if latest is None:
            raise CheckpointNotFoundError(f"resume.path: nothing is committed under {root}")
        return latest
    found = catalog.find(str(location))
    if found is None or found.state == "quarantined":
        known = ", ".join(str(entry.step) for entry in catalog.live()[-5:]) or "none"
        state = "set aside as damaged" if found else "not committed"
        raise CheckpointNotFoundError(f"resume.path: {root}/{location} is {state}; committed steps there: {known}")
    return found
