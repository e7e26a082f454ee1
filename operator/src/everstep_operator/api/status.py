"""`status` of a TrainingJob: what the operator saw and did.

`kubectl describe` sorts keys and splits camelCase, so names are plain words and nested by subject. To add a field, add
an attribute with a bound and a docstring to the model of its subject, with None as the default, and run `make crd`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from everstep_operator.api.common import Count, Duration, Instant, Line, Number64, Short, StatusModel, Step, Time, Where
from everstep_operator.api.failure import RECENT_LIMIT
from everstep_operator.api.spec import MAX_NODES

HISTORY_LIMIT = 10
"""Attempts that the status remembers; older ones are dropped."""


class Phase(StrEnum):
    """Where the job stands, in a word."""

    PENDING = "Pending"
    STARTING = "Starting"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"

    @property
    def finished(self) -> bool:
        """Whether the job has ended for good."""
        return self in (Phase.SUCCEEDED, Phase.FAILED)


class ConditionType(StrEnum):
    """Types of the conditions that the operator sets."""

    SUSPENDED = "Suspended"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    STALLED = "Stalled"
    CHECKPOINT_AVAILABLE = "CheckpointAvailable"
    COMPLETE = "Complete"
    FAILED = "Failed"
    STORAGE_READY = "StorageReady"
    SPEC_APPLIED = "SpecApplied"
    VALID = "Valid"


class Condition(StatusModel):
    """One aspect of the job's state, as all Kubernetes resources show it."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=316)]
    """What it is about: Suspended, Running, Restarting, Stalled, CheckpointAvailable, Complete, Failed, StorageReady,
    SpecApplied or Valid."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, StringConstraints(max_length=1024)] = ""
    """Why, as one CamelCase word."""
    message: Annotated[str, StringConstraints(max_length=32768)] = ""
    """Why, as a sentence for people."""
    last_transition_time: Time
    """When the status last changed."""
    observed_generation: Number64 | None = None
    """The generation of the spec that it was computed from."""


class Restarts(StatusModel):
    """How often the job was restarted, and why the last time."""

    total: Count = 0
    """New attempts after a failure, counted or not."""
    counted: Count = 0
    """Those that count against failurePolicy.maxRestarts."""
    in_place: Count = 0
    """Restarts of the workers within an attempt, without new pods."""
    without_progress: Count = 0
    """Attempts in a row, up to now, that committed nothing new."""
    disrupted: Count = 0
    """How many of `withoutProgress` did not count, such as disruptions."""
    recent: Annotated[
        list[Time],
        Field(max_length=RECENT_LIMIT, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = []  # noqa: RUF012
    """When counted restarts of the last failurePolicy.windowSeconds began."""
    last_reason: Line | None = None
    """The cause of the last one."""
    last_time: Time | None = None
    """When the last one began."""
    next_time: Time | None = None
    """When the back-off ends and the next attempt starts."""


class Progress(StatusModel):
    """How far the training is, from the heartbeat."""

    summary: Short | None = None
    """Step, total and percent in a line."""
    step: Step | None = None
    """The last finished optimizer step."""
    total_steps: Step | None = None
    """The step at which the training ends, if the script has told."""
    from_step: Step | None = None
    """The step that the job's first attempt resumed; 0 for a fresh start."""
    updated: Time | None = None
    """When the step was reported."""
    estimated_completion: Time | None = None
    """When the last step is due at the present speed."""
    metrics: Annotated[dict[str, Annotated[str, StringConstraints(max_length=63)]], Field(max_length=32)] | None = None
    """The last reported metrics."""


class CheckpointRef(StatusModel):
    """One committed checkpoint."""

    step: Step
    """The optimizer step that it holds."""
    location: Where
    """Where it stands."""
    committed: Time | None = None
    """When it was committed."""
    size: Short | None = None
    """How large it is."""
    attempt: Count | None = None
    """The attempt that committed it."""


class ResumedFrom(StatusModel):
    """The checkpoint that the current attempt resumed."""

    step: Step
    """The optimizer step that it holds."""
    location: Where
    """Where it stands; `local:` and its name where it was the local tier's."""


class BestCheckpoint(StatusModel):
    """The committed checkpoint with the best score."""

    step: Step
    """The optimizer step that it holds."""
    score: Short
    """Its score."""
    location: Where | None = None
    """Where it stands."""


class Checkpoints(StatusModel):
    """The committed checkpoints that are kept."""

    count: Count = 0
    """How many."""
    total_size: Short | None = None
    """What they occupy."""
    best: BestCheckpoint | None = None
    """The one with the best score."""
    quarantined: Count | None = None
    """Those set aside because their bytes did not verify."""
    quarantined_time: Time | None = None
    """When the last of them was seen to be."""


class RecoverySeconds(StatusModel):
    """Seconds of the last recovery by phase."""

    detect: Duration | None = None
    """From the fault to the operator's notice."""
    restart: Duration | None = None
    """Of a restart in place: from the fault, by the log of its pod, to the claim of the workers that follow."""
    teardown: Duration | None = None
    """Until the pods of the old attempt were gone."""
    schedule: Duration | None = None
    """Until all pods of the new attempt were bound to nodes."""
    start: Duration | None = None
    """Until all of them ran."""
    load: Duration | None = None
    """Until the first new step; of a restart in place: from the claim."""
    total: Duration | None = None
    """From the fault to the first new step."""


class Recovery(StatusModel):
    """The last recovery."""

    detected: Instant | None = None
    """When the operator noticed the fault."""
    attempt: Count | None = None
    """The attempt that failed, or whose workers were restarted in place."""
    lost_steps: Step | None = None
    """Steps that were done and had to be done again, as far as anybody could tell; there may have been more."""
    seconds: RecoverySeconds | None = None
    """How long it took."""

    @property
    def is_over(self) -> bool:
        """Whether a new step has ended. The total stays unknown where nothing tells when the fault was."""
        return self.seconds is not None and self.seconds.load is not None


class HistoryEntry(StatusModel):
    """One attempt that has ended."""

    attempt: Count
    """Its number."""
    reason: Short | None = None
    """How it ended, as one CamelCase word."""
    message: Line | None = None
    """How it ended, in a sentence."""
    rule: Short | None = None
    """The rule of the failure policy that decided, if one matched."""
    pod: Short | None = None
    """The pod that failed first."""
    node: Short | None = None
    """The node of that pod."""
    rank: Count | None = None
    """The rank that failed first."""
    code: Annotated[int, Field(ge=-255, le=255, json_schema_extra={"format": "int32"})] | None = None
    """Exit code; negative for the number of a signal."""
    from_step: Step | None = None
    """The step that it resumed."""
    to_step: Step | None = None
    """The last step that anything of it tells of: its pods as they ended, its heartbeat, its checkpoints."""
    started: Time | None = None
    """When its pods were created."""
    ended: Time | None = None
    """When it was found to have ended."""
    seconds: Duration | None = None
    """How long it lasted."""
    next_nodes: Count | None = None
    """Pods of the attempt after it, where that is fewer than spec.nodes (spec.elastic)."""


class Fence(StatusModel):
    """The catalog version from which the current attempt's resume point was read."""

    attempt: Count
    """The attempt that was fenced."""
    epoch: Number64
    """The catalog's epoch after the fence."""
    generation: Number64
    """The catalog's generation after the fence."""
    claimed: Number64 | None = None
    """The epoch of the last claim seen: a newer one is a restart of the workers in place."""


class Leaving(StatusModel):
    """A pod that somebody else is deleting."""

    pod: Short
    """Its name."""
    node: Short | None = None
    """Its node."""
    reason: Short | None = None
    """Why, if its condition DisruptionTarget tells: a drain, a preemption."""
    message: Line | None = None
    """The same in a sentence."""


class Gang(StatusModel):
    """The pods of the current attempt."""

    summary: Short | None = None
    """Running of wanted, in a few words."""
    nodes: Count | None = None
    """Pods that it was created with."""
    waiting: Line | None = None
    """What pods that do not run wait for."""
    succeeded: (
        Annotated[list[Count], Field(max_length=MAX_NODES, json_schema_extra={"x-kubernetes-list-type": "atomic"})]
        | None
    ) = None
    """Indices of pods that were seen to succeed before the others, where no heartbeat would tell once they are gone."""
    leaving: Leaving | None = None
    """The first pod that was seen being deleted; its workers save while its grace lasts."""
    started: Instant | None = None
    """When the pods were created."""
    running: Instant | None = None
    """When all of them ran."""


class Requests(StatusModel):
    """What annotations of the job have asked for, by their values: the same value asks for nothing new."""

    restart: Short | None = None
    """The last value of everstep.dev/restart-now that was acted on."""
    checkpoint: Short | None = None
    """The last value of everstep.dev/checkpoint-now that was passed on to the workers, or that needed no passing on."""
    attempt: Count | None = None
    """The attempt whose workers it was passed on to."""
    checkpoint_saved: Short | None = None
    """The last value of everstep.dev/checkpoint-now whose checkpoint is committed."""
    checkpoint_saved_time: Time | None = None
    """When that was seen."""


class TrainingJobStatus(StatusModel):
    """What the operator saw and did."""

    phase: Phase | None = None
    """Where the job stands, in a word."""
    attempt: Count = 0
    """The number of the current attempt; 0 before the first."""
    nodes: Count = 0
    """Pods of the current attempt that exist."""
    selector: Line | None = None
    """Label selector of the job's pods."""
    start_time: Time | None = None
    """When the first attempt started."""
    completion_time: Time | None = None
    """When the job ended."""
    active_seconds: Number64 | None = None
    """Seconds of activity up to `activeSince`; for activeDeadlineSeconds."""
    active_since: Time | None = None
    """Since when the job is active; absent while it is suspended or finished."""
    restarts: Restarts | None = None
    """How often the job was restarted, and why."""
    progress: Progress | None = None
    """How far the training is."""
    last_checkpoint: CheckpointRef | None = None
    """The latest committed checkpoint."""
    resumed_from: ResumedFrom | None = None
    """The checkpoint that the current attempt resumed; absent when it started fresh."""
    checkpoints: Checkpoints | None = None
    """The committed checkpoints that are kept."""
    recovery: Recovery | None = None
    """The last recovery."""
    fence: Fence | None = None
    """The current attempt's fence."""
    gang: Gang | None = None
    """The pods of the current attempt."""
    requests: Requests | None = None
    """What annotations have asked for."""
    history: Annotated[
        list[HistoryEntry],
        Field(
            max_length=HISTORY_LIMIT,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["attempt"]},
        ),
    ] = []  # noqa: RUF012
    """The last attempts that ended, oldest first."""
    goodput: Short | None = None
    """The share of active time that went into steps which were kept."""
    observed_generation: Number64 | None = None
    """The generation of the spec that the operator last acted on."""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=20,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = []  # noqa: RUF012
    """The aspects of the job's state."""

    def condition(self, kind: str) -> Condition | None:
        """The condition of that type, if it was ever set."""
        return next((c for c in self.conditions if c.type == kind), None)

    def is_true(self, kind: str) -> bool:
        """Whether the condition of that type is True."""
        found = self.condition(kind)
        return found is not None and found.status == "True"
