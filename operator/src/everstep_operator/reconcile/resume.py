"""Where a job's first attempt starts. Every later one resumes what the job itself committed, whatever the spec says."""

from __future__ import annotations

from everstep.catalog import AUTO, Resume
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
