"""What a pass is to do: the whole output of a decision, as plain data.

The runtime carries a plan out in this order, and stops at the first step that fails:

1. Write `status`, with the resourceVersion that was observed as precondition, if it differs from the stored one. It
   tells only what was observed, never what is about to be done, and what an action presumes is in it: so a failure is
   recorded before the fence that follows it. On a conflict the plan is dropped and the job observed anew.
2. Emit `events`, each under a name made of the job's uid, its reason and its key; one that exists already is left
   alone. They tell how the status changed, so there are none where nothing was written.
3. Run `actions` in order. The first that fails becomes `Results.problem` of the next observation of this chain; those
   after it are left out, but after a DeletePod.
4. With `again`: observe once more with the results, and decide; else look again after `requeue_after` seconds, or when
   something changes. A chain also goes on (once) after an action failed, so that the problem reaches the status.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from everstep.catalog import AUTO, Resume, Retention
from everstep_operator.api import TrainingJobStatus


@dataclass(frozen=True, slots=True)
class Probe:
    """Prove that the store enforces conditional writes: `Results.probed`, or a problem."""


@dataclass(frozen=True, slots=True)
class ValidateResumePath:
    """Find the committed checkpoint that `path` names: `Results.resume`, or a RESUME_NOT_FOUND problem.

    The profile check applies to `path` as to the job's own root.
    """

    path: str


@dataclass(frozen=True, slots=True)
class Fence:
    """JobCatalog.fence, with the owner made of cluster and job. The next observation holds the document it returned."""

    at_least: int
    resume: Resume = AUTO
    adopt: bool = False
    expect_existing: bool = False
    expected: int = 0
    """The attempt that the catalog named when this was decided: where it names another by now, somebody else has
    decided since, and nothing is fenced."""


@dataclass(frozen=True, slots=True)
class DryRunPod:
    """Create the pod with dryRun=All: `Results.dry_run`, or a POD_REFUSED problem."""

    manifest: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EnsureService:
    """Server-side apply. The next observation holds it with its cluster IP."""

    name: str
    manifest: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CreatePod:
    """Create; one that exists already under this name with the job's uid is a success."""

    name: str
    manifest: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Delete with the uid as precondition; absent is a success. `grace` in seconds, None: the pod's own."""

    name: str
    uid: str
    grace: int | None = None


@dataclass(frozen=True, slots=True)
class MarkPod:
    """Give a pod the labels back that somebody took away, and the owner, where `owner` says that it has none."""

    name: str
    resource_version: str
    labels: dict[str, str]
    owner: bool = False


@dataclass(frozen=True, slots=True)
class ReadLogs:
    """Fetch the log's end (some 100 lines, 16 KiB) of these pods' trainer containers: `Results.logs` and `failed_at`.
    Never fails."""

    pods: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AskForSave:
    """Ask the workers of an attempt for a checkpoint: `Results.asked`. Asking twice with one value is asking once."""

    attempt: int
    value: str


@dataclass(frozen=True, slots=True)
class Retire:
    """JobCatalog.retire."""

    policy: Retention


@dataclass(frozen=True, slots=True)
class FinishRemovals:
    """JobCatalog.finish_removals."""

    most: int = 100


@dataclass(frozen=True, slots=True)
class Sweep:
    """JobCatalog.sweep; resets `Stored.swept_age`."""


@dataclass(frozen=True, slots=True)
class DeleteCheckpoints:
    """Fence the job's root and remove everything that everstep wrote below it, beside the passes; when it ends it wakes
    the job, whose next pass finds `Results.checkpoints_deleted` or `Results.deletion`."""


@dataclass(frozen=True, slots=True)
class AddFinalizer:
    name: str


@dataclass(frozen=True, slots=True)
class RemoveFinalizer:
    name: str


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Delete the TrainingJob itself (ttlSecondsAfterFinished), uid as precondition."""

    uid: str


Action = (
    Probe
    | ValidateResumePath
    | Fence
    | DryRunPod
    | EnsureService
    | CreatePod
    | DeletePod
    | MarkPod
    | ReadLogs
    | AskForSave
    | Retire
    | FinishRemovals
    | Sweep
    | DeleteCheckpoints
    | AddFinalizer
    | RemoveFinalizer
    | DeleteJob
)

LEAVES_PODS = (Probe, ValidateResumePath, DryRunPod, EnsureService)
"""Actions after which the job's pods are as they were observed, unless a watch tells otherwise."""


@dataclass(frozen=True, slots=True)
class Event:
    """`key` tells apart what may happen again: the attempt, mostly. Same uid, reason and key: the same event."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    status: TrainingJobStatus
    """Whole, as it is to stand; equal to the stored one where nothing is to be written."""
    events: tuple[Event, ...] = ()
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
    """Seconds; None: only when something changes (or at the resync)."""
    again: bool = False
