"""What a pass has seen of one job: the whole input of a decision, as plain data.

The observer fills it and nothing else is read while deciding, so that every decision can be replayed in a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Literal

from everstep.catalog import Catalog, Heartbeat, Resume
from everstep_operator.api import TrainingJob, TrainingJobStatus

PodPhase = Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]


class ProblemKind(StrEnum):
    """What stands in the way, as far as decisions differ by it."""

    UNAVAILABLE = "Unavailable"
    """No answer from storage, or one that says "later" (StorageUnavailableError)."""
    REFUSED = "Refused"
    """An answer that stays the same: outside the profile, wrong bucket or credentials (StorageRefusedError)."""
    UNSAFE = "Unsafe"
    """The probe found conditional writes not enforced (StorageUnsafeError)."""
    CATALOG_MISSING = "CatalogMissing"
    CATALOG_UNREADABLE = "CatalogUnreadable"
    OWNER_CONFLICT = "OwnerConflict"
    RESUME_NOT_FOUND = "ResumeNotFound"
    """`resume.path` names no committed checkpoint, or is itself refused for good."""
    POD_REFUSED = "PodRefused"
    """The API server refused a pod or service: quota, Pod Security, a webhook, an invalid template."""
    CLUSTER = "Cluster"
    """The API server failed otherwise: worth trying again."""


@dataclass(frozen=True, slots=True)
class Problem:
    kind: ProblemKind
    reason: str
    """One CamelCase word for a condition, e.g. `StorageLocationNotAllowed`, `QuotaExceeded`."""
    message: str
    """A sentence that names the field or value and the way out."""


@dataclass(frozen=True, slots=True)
class ConditionView:
    """One of a pod's conditions, e.g. PodScheduled, DisruptionTarget."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    since: datetime | None = None
    """lastTransitionTime."""


@dataclass(frozen=True, slots=True)
class ContainerView:
    """The trainer container of a pod. At most one of waiting, running and terminated is filled."""

    waiting_reason: str | None = None
    waiting_message: str | None = None
    running_since: datetime | None = None
    exit_code: int | None = None
    """Set exactly when it has terminated."""
    signal: int | None = None
    reason: str | None = None
    """Of the termination: Completed, Error, OOMKilled, ContainerStatusUnknown, …"""
    message: str | None = None
    """The termination message: the library's record, or the log's end (FallbackToLogsOnError)."""
    started: datetime | None = None
    finished: datetime | None = None
    restarts: int = 0

    @property
    def terminated(self) -> bool:
        return self.exit_code is not None


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod with one of the job's names that is the job's by its label or its owner."""

    name: str
    uid: str
    attempt: int
    index: int
    phase: PodPhase
    resource_version: str = ""
    deleting: bool = False
    """deletionTimestamp is set."""
    deletion_grace: int | None = None
    """deletionGracePeriodSeconds, where it is being deleted."""
    stop_by: datetime | None = None
    """deletionTimestamp: when its grace ends, by the API server's clock."""
    node: str | None = None
    """None: not scheduled."""
    created: datetime | None = None
    reason: str | None = None
    """status.reason, e.g. Evicted, NodeLost."""
    message: str | None = None
    conditions: tuple[ConditionView, ...] = ()
    container: ContainerView = ContainerView()
    labelled: bool = True
    """It has the labels that it was built with."""
    owned: bool = True
    """It has an owner."""
    annotations: dict[str, str] = field(default_factory=dict)
    """Those under everstep.dev/: the gang's size, the fence and the resume point that the pod was built with."""

    @property
    def terminal(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.phase in ("Succeeded", "Failed")

    def condition(self, kind: str) -> ConditionView | None:
        return next((c for c in self.conditions if c.type == kind), None)


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node that carries (or carried) one of the job's pods. A node that is gone has `exists=False`."""

    name: str
    exists: bool = True
    ready: bool = True
    """The Ready condition is True."""
    lease_silent: bool = False
    """Its Lease was not renewed for so long (by the operator's own monotonic clock) that its kubelet must be down."""

    @property
    def healthy(self) -> bool:
        return self.exists and self.ready and not self.lease_silent


@dataclass(frozen=True, slots=True)
class ServiceView:
    """The job's rendezvous service."""

    name: str
    uid: str
    cluster_ip: str
    """Empty where it has no address."""
    attempt: int
    """The attempt whose pod 0 it leads to; 0 where it is not as it was built."""


@dataclass(frozen=True, slots=True)
class HeartbeatView:
    """The heartbeat of the attempt in force (the largest of catalog and status). Ages by the operator's monotonic
    clock, counted from when this process first saw that value, and not while storage gave no answer: so they are never
    too large."""

    heartbeat: Heartbeat
    beat_age: float
    """Seconds since `beat` last changed."""
    still: float
    """Seconds since it last told of something new: another step, another phase, another worker group."""
    in_phase: float
    """Seconds for which each look has found this phase, however often it was told anew."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What stands in storage. `catalog` None and `problem` None: it was read, and there is none."""

    catalog: Catalog | None = None
    heartbeat: HeartbeatView | None = None
    problem: Problem | None = None
    """Why the catalog or the heartbeat could not be read; then both may be stale or None."""
    heartbeat_absent: float | None = None
    """Where there is no heartbeat: seconds since this process first found none; None where it could not look."""
    swept_age: float | None = None
    """Seconds since this process last swept the job's root; None: never."""
    former: Heartbeat | None = None
    """The last one that was seen of the worker group before that of the heartbeat, in the same attempt."""


@dataclass(frozen=True, slots=True)
class Results:
    """What the actions of this pass's earlier plans gave (a chain of plans with `again`). Empty at its beginning."""

    problem: Problem | None = None
    """What stopped the last plan's actions."""
    probed: bool = False
    """The store enforces conditional writes (may be remembered for the root across passes)."""
    resume: Resume | None = None
    """ValidateResumePath's answer: what to give to the fence."""
    dry_run: bool = False
    """The API server would accept the pod."""
    refused: Problem | None = None
    """Or why it would not."""
    logs: dict[str, str] = field(default_factory=dict)
    """ReadLogs' answers: pod name to the end of its log; empty where there was none."""
    failed_at: dict[str, datetime] = field(default_factory=dict)
    """When, by those logs, torchrun last saw a worker of the pod fail."""
    asked: str | None = None
    """AskForSave's value, once it stands where the workers look."""
    checkpoints_deleted: bool = False
    """DeleteCheckpoints has come to its end."""
    deletion: Problem | None = None
    """Why the last removal, which runs beside the passes, has failed: a DeleteCheckpoints, a Retire, a Sweep."""


@dataclass(frozen=True, slots=True)
class Observation:
    job: TrainingJob
    """With the status as stored (or as this process last wrote it)."""
    now: datetime
    """Aware, UTC."""
    cluster: str
    """Uid of the kube-system namespace."""
    pods: tuple[PodView, ...] = ()
    parted: Mapping[int, int] = field(default_factory=dict)
    """By attempt: the last step that pods told of which are gone, as far as this process was told."""
    services: tuple[ServiceView, ...] = ()
    nodes: tuple[NodeView, ...] = ()
    stored: Stored = Stored()
    results: Results = Results()
    poll_seconds: float = 5.0
    """How soon a running job's registers are to be looked at again, as load permits."""
    progress_seconds: float = 15.0
    """Shortest time between two status writes for the sake of progress alone."""
    hindered: float = 0.0
    """Seconds for which the cluster has refused something in each pass, as far as this process knows."""

    def written(self, status: TrainingJobStatus) -> Observation:
        """As it is once this status is written: what follows in the same plan may rely on it."""
        return replace(self, job=self.job.model_copy(update={"status": status}))

    def node(self, name: str | None) -> NodeView | None:
        return next((node for node in self.nodes if node.name == name), None)
