"""The one status write of a pass: only what differs, and only onto the very version that was observed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everstep_operator.api import TrainingJob, TrainingJobStatus
from everstep_operator.kube import ApiError, Kube, job_path
from everstep_operator.observe import Seen


class StaleError(Exception):
    """The job was changed since it was observed: the plan is dropped and the job observed anew."""


async def write_status(kube: Kube, seen: Seen, status: TrainingJobStatus) -> bool:
    """Make the stored status equal to `status`; returns whether anything was written. Raises StaleError.

    Fields of the stored status that this version does not know stay as they are.
    """
    change = merge_patch(seen.job.status.dump(), status.dump())
    if not change:
        return False
    body = {"metadata": {"resourceVersion": seen.job.metadata.resource_version}, "status": change}
    await patch_job(kube, seen, body, "status")
    return True


async def patch_job(kube: Kube, seen: Seen, body: Mapping[str, Any], subresource: str = "") -> None:
    """Merge-patch the job and keep what the API server made of it. Raises StaleError if it has changed or is gone."""
    try:
        seen.body = await kube.patch(job_path(*seen.key, subresource), body)
    except ApiError as error:
        if error.conflict or error.not_found:
            raise StaleError(str(error)) from error
        raise
    seen.job = TrainingJob.parse(seen.body)


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7396) from one object to another; empty where they are equal. Lists are replaced."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            inner = merge_patch(before, value)
            if inner:
                patch[key] = inner
        elif before != value:
            patch[key] = value
    return patch
