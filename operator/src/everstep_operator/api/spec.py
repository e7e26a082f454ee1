"""`spec` of a TrainingJob: what the user asks for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from everstep_operator.api.checkpoint import Checkpoint, Resume
from everstep_operator.api.common import INLINE, PositiveSeconds, Seconds, SpecModel, changes, rule, rules
from everstep_operator.api.failure import FailurePolicy

MAX_NODES = 4096
MAX_PROCESSES = 256
TRAINER = "trainer"
"""Name of the container that trains, where a template has several."""

Nodes = Annotated[int, Field(ge=1, le=MAX_NODES, json_schema_extra={"format": "int32"})]
Processes = Annotated[int, Field(ge=1, le=MAX_PROCESSES)]
ProcPerNode = Processes | Literal["auto", "gpu", "cpu"]
Manager = Annotated[
    str,
    StringConstraints(
        min_length=3,
        max_length=63,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
    ),
]


class Elastic(SpecModel):
    """Lets the gang run with fewer pods than `nodes` where the cluster has no room for all of them."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("self.minNodes <= self.maxNodes", "must not exceed maxNodes", path=".minNodes"),
        )
    )

    min_nodes: Annotated[Nodes, Field(json_schema_extra=changes("live"))]
    """The fewest pods that train. A start that has timed out (failurePolicy.startTimeoutSeconds) is followed by one
    with as many pods as had a node, and at least this many. Attempts after a failure keep that size; one after an edit
    or a suspension tries `nodes` again."""
    max_nodes: Annotated[Nodes, Field(json_schema_extra=changes("live"))]
    """The most that `nodes` may be set to, e.g. by `kubectl scale`."""


class TrainingJobSpec(SpecModel):
    """What to train, with how many pods, where the checkpoints go, and what happens on failure."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.elastic) || (self.elastic.minNodes <= self.nodes && self.nodes <= self.elastic.maxNodes)",
                "must lie between elastic.minNodes and elastic.maxNodes",
                path=".nodes",
            ),
            rule(
                "has(self.managedBy) == has(oldSelf.managedBy) && "
                "(!has(self.managedBy) || self.managedBy == oldSelf.managedBy)",
                "is immutable: create the job anew for another controller",
                path=".managedBy",
            ),
            rule(
                "!has(self.template.spec) || size(self.template.spec.containers) == 1 || "
                f"self.template.spec.containers.exists(c, c.name == '{TRAINER}')",
                f"needs one container, or one of its containers named {TRAINER}",
                path=".template",
            ),
        )
    )

    nodes: Annotated[Nodes, Field(json_schema_extra=changes("restart"))] = 1
    """Pods in the gang."""
    proc_per_node: Annotated[
        ProcPerNode,
        Field(
            json_schema_extra=changes(
                "restart",
                **{
                    "x-kubernetes-int-or-string": True,
                    "pattern": "^(auto|gpu|cpu)$",
                    "minimum": 1,
                    "maximum": MAX_PROCESSES,
                },
            )
        ),
    ] = 1
    """Training processes in a pod: a number, or torchrun's words `auto`, `gpu`, `cpu` for what the node has."""
    elastic: Elastic | None = None
    """Bounds of the gang's size. Absent: it is always `nodes`."""
    suspend: Annotated[bool, Field(json_schema_extra=changes("live"))] = False
    """Save, stop the pods, and wait until it is false again; the job then resumes at its latest commit."""
    template: Annotated[dict[str, Any], Field(json_schema_extra=changes("restart", **{INLINE: "pod_template"}))]
    """The pods of the gang, a PodTemplateSpec. restartPolicy, hostname, subdomain and the variables EVERSTEP_… and
    PET_… are the operator's to set, but EVERSTEP_TRAIN_…, EVERSTEP_PRELOAD, EVERSTEP_WARM_RANKS and PET_MAX_RESTARTS
    (restarts in place) are not."""
    checkpoint: Checkpoint
    """Where checkpoints are written, how often, and which are kept."""
    resume: Resume = Resume()
    """Where the job's first attempt starts."""
    failure_policy: FailurePolicy = FailurePolicy()
    """What happens when an attempt fails, hangs or does not start."""
    active_deadline_seconds: Annotated[PositiveSeconds | None, Field(json_schema_extra=changes("live"))] = None
    """The job fails when it has been active for this long, restarts included and suspension excluded."""
    ttl_seconds_after_finished: Annotated[Seconds | None, Field(json_schema_extra=changes("live"))] = None
    """Delete the finished job after this long. Absent: it stays."""
    deletion_policy: Annotated[Literal["Retain", "Delete"], Field(json_schema_extra=changes("live"))] = "Retain"
    """What becomes of the checkpoints when the job is deleted."""
    managed_by: Annotated[Manager | None, Field(json_schema_extra=changes("immutable"))] = None
    """The controller that runs this job. Absent or `everstep.dev/operator`: everstep; it leaves all others alone."""
