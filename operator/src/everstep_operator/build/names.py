"""Names, labels and annotations of what belongs to a job. They are deterministic, so that creating twice is no harm."""

from __future__ import annotations

from everstep_operator.api import GROUP

JOB = f"{GROUP}/job"
JOB_UID = f"{GROUP}/job-uid"
ATTEMPT = f"{GROUP}/attempt"
INDEX = f"{GROUP}/index"
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


def service_name(job: str) -> str:
    """One service a job: its address stays, its selector moves from attempt to attempt."""
    return f"{job}-rendezvous"


def selector(uid: str) -> str:
    """Selects all pods of a job, of every attempt."""
    return f"{JOB_UID}={uid}"
