"""Names, labels and annotations of what belongs to a job. They are deterministic, so that creating twice is no harm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everstep_operator.api import GROUP

JOB = f"{GROUP}/job"
JOB_UID = f"{GROUP}/job-uid"
ATTEMPT = f"{GROUP}/attempt"
INDEX = f"{GROUP}/index"
POD_LABELS = (JOB, JOB_UID, ATTEMPT, INDEX)
"""Labels of pods. Selecting by uid leaves a former job of the same name out."""

NODES = f"{GROUP}/nodes"
EPOCH = f"{GROUP}/epoch"
GENERATION = f"{GROUP}/generation"
RESUME_PATH = f"{GROUP}/resume-path"
RESUME_STEP = f"{GROUP}/resume-step"
RENDEZVOUS = f"{GROUP}/rendezvous"
CONTAINER = f"{GROUP}/container"
SPEC = f"{GROUP}/spec"
"""Annotations of pods: what they were built with, so that the rest of a gang is built the same after a crash."""

ADOPT = f"{GROUP}/adopt"
"""Annotation of a TrainingJob: take over another owner's catalog."""
RESTART_NOW = f"{GROUP}/restart-now"
CHECKPOINT_NOW = f"{GROUP}/checkpoint-now"
"""Annotations of a TrainingJob: a new value asks once for a restart, or for a checkpoint."""
FINALIZER = f"{GROUP}/checkpoints"

RENDEZVOUS_PORT = 29400


def pod_name(job: str, attempt: int, index: int) -> str:
    return f"{job}-{attempt}-{index}"


def read_pod_name(job: str, name: str) -> tuple[int, int] | None:
    """Attempt and index of the pod of that name; None for one that `pod_name` does not make."""
    attempt, _, index = name.removeprefix(f"{job}-").partition("-")
    if not (attempt.isascii() and attempt.isdigit() and index.isascii() and index.isdigit()):
        return None
    found = int(attempt[:20]), int(index[:20])
    return found if name == pod_name(job, *found) else None


def service_name(job: str) -> str:
    """One service a job: its address stays, its selector moves from attempt to attempt."""
    return f"{job}-rendezvous"


def labels(job: str, uid: str, attempt: int) -> dict[str, str]:
    """Labels of what belongs to an attempt."""
    return {JOB: job, JOB_UID: uid, ATTEMPT: str(attempt)}


def pod_labels(job: str, uid: str, attempt: int, index: int) -> dict[str, str]:
    """Labels by which a pod is found and, where its index is 0, the service leads to it."""
    return {**labels(job, uid, attempt), INDEX: str(index)}


def service_selector(uid: str, attempt: int) -> dict[str, str]:
    return {JOB_UID: uid, ATTEMPT: str(attempt), INDEX: "0"}


def belongs(meta: Mapping[str, Any], uid: str) -> bool:
    """Whether a pod or service is the job's: by its label, or by its owner where somebody took the label away."""
    return (meta.get("labels") or {}).get(JOB_UID) == uid or is_owned(meta, uid)


def is_owned(meta: Mapping[str, Any], uid: str) -> bool:
    """Whether it goes when the job goes."""
    return any(each.get("uid") == uid for each in meta.get("ownerReferences") or [])


def selector(uid: str) -> str:
    """Selects all pods of a job, of every attempt."""
    return f"{JOB_UID}={uid}"
