"""`spec.checkpoint` and `spec.resume`: where checkpoints go, how often, which are kept, and where a job starts from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from everstep_operator.api.common import (
    MAX_STEP,
    DnsName,
    PositiveSeconds,
    S3Prefix,
    S3Uri,
    SpecModel,
    changes,
    rule,
    rules,
)
from everstep_operator.api.quantities import Quantity

PositiveSteps = Annotated[int, Field(ge=1, le=MAX_STEP, json_schema_extra={"format": "int64"})]
KeepCount = Annotated[int, Field(ge=2, le=1000, json_schema_extra={"format": "int32"})]
Metric = Annotated[
    str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?$")
]
Endpoint = Annotated[
    str,
    StringConstraints(max_length=512, pattern=r"^https?://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?/?$"),
]
Region = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$")]


def _same(field: str) -> str:
    return f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"


class Storage(SpecModel):
    """The object storage that holds the job's checkpoints, under `{uri}/{namespace}/{name}/`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.uri == oldSelf.uri",
                "is immutable: the committed checkpoints stand there; start a new job with resume.mode fromPath",
                path=".uri",
            ),
            rule(
                _same("endpoint"),
                "is immutable: the committed checkpoints stand there; start a new job with resume.mode fromPath",
                path=".endpoint",
            ),
        )
    )

    uri: Annotated[S3Prefix, Field(json_schema_extra=changes("immutable"))]
    """Bucket and prefix, as `s3://bucket/prefix`."""
    endpoint: Annotated[Endpoint | None, Field(json_schema_extra=changes("immutable"))] = None
    """URL of an S3-compatible server, without a path; AWS where it is absent."""
    region: Annotated[Region | None, Field(json_schema_extra=changes("restart"))] = None
    """Region that requests are signed for."""
    secret_name: Annotated[DnsName | None, Field(json_schema_extra=changes("restart"))] = None
    """A Secret in the job's namespace whose keys (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, …) become variables of
    the pods. Absent: the pods' own identity (workload identity) is used. The operator never reads it."""


class Interval(SpecModel):
    """How often to save; with both, whichever comes first."""

    model_config = ConfigDict(
        json_schema_extra=rules(rule("has(self.steps) || has(self.seconds)", "needs steps, seconds or both"))
    )

    steps: Annotated[PositiveSteps | None, Field(json_schema_extra=changes("next-attempt"))] = None
    """Save after this many optimizer steps."""
    seconds: Annotated[PositiveSeconds | None, Field(json_schema_extra=changes("next-attempt"))] = None
    """Save when this many seconds have passed since the last save."""


class KeepBest(SpecModel):
    """Keeps the checkpoints with the best score, beside the newest."""

    count: Annotated[int, Field(ge=1, le=1000, json_schema_extra=changes("live", format="int32"))] = 1
    """How many."""
    metric: Annotated[Metric, Field(json_schema_extra=changes("next-attempt"))]
    """The reported metric that is the score, e.g. `eval_loss`; `score` is what a script reports as such. A checkpoint
    of a step that did not report it has no score and is never the best. Scores that stand are not computed anew:
    those of another metric do not compete."""
    mode: Annotated[Literal["min", "max"], Field(json_schema_extra=changes("live"))] = "min"
    """Whether a lower (`min`) or a higher (`max`) score is better."""


class LocalTier(SpecModel):
    """Saves on the nodes, from which workers that restart in place resume. They never decide what is committed."""

    interval: Annotated[Interval, Field(json_schema_extra=changes("next-attempt"))]
    """How often to save to the local tier."""
    medium: Annotated[Literal["Memory", "Disk"], Field(json_schema_extra=changes("restart"))] = "Memory"
    """`Memory` counts against the container's memory limit; `Disk` is the node's ephemeral storage. Either goes with
    the pod."""
    size_limit: Annotated[Quantity, Field(json_schema_extra=changes("restart"))]
    """Space in each pod, e.g. `4Gi`: twice what its ranks save there. A save that finds no room is left out."""


class Weights(SpecModel):
    """Saves of the weights alone, for inference while the training goes on, with a register of their own."""

    interval: Interval
    """How often to publish weights. The last step's are published in any case."""
    keep_last: Annotated[KeepCount, Field(json_schema_extra=changes("next-attempt"))] = 2
    """How many of the newest to keep."""


class Checkpoint(SpecModel):
    """Where checkpoints are written, how often, and which are kept: the union of keepLast, keepBest and keepEvery."""

    storage: Storage
    """The object storage."""
    interval: Interval = Interval(seconds=600)
    """How often to save."""
    async_: Annotated[bool, Field(alias="async", json_schema_extra=changes("next-attempt"))] = True
    """Upload in the background while training goes on. A save counts only once it is committed, either way. False:
    training waits for each save."""
    keep_last: Annotated[KeepCount, Field(json_schema_extra=changes("live"))] = 3
    """How many of the newest checkpoints to keep. Never fewer than two, so that a corrupt one has one before it."""
    keep_best: KeepBest | None = None
    """Keep the best by score, too."""
    keep_every: Annotated[PositiveSteps | None, Field(json_schema_extra=changes("live"))] = None
    """Keep each checkpoint whose step is a multiple of this for good."""
    local: LocalTier | None = None
    """A fast tier on the nodes, every few steps, beside the saves of `interval`."""
    weights: Annotated[Weights | None, Field(json_schema_extra=changes("next-attempt"))] = None
    """Weight-only saves for inference, in `weights/` under the job's root. The pods make and remove them."""


class Resume(SpecModel):
    """Where the job's first attempt starts. Every later attempt resumes what the job itself committed last."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.mode == 'fromPath' ? has(self.path) : true",
                "is needed when mode is fromPath: name a checkpoint, or a job's root for its latest",
                path=".path",
            ),
            rule(
                "has(self.path) ? self.mode == 'fromPath' : true",
                "is used only when mode is fromPath: remove it, or set mode to fromPath",
                path=".path",
            ),
        )
    )

    mode: Annotated[Literal["auto", "disable", "fromPath"], Field(json_schema_extra=changes("first-attempt"))] = "auto"
    """`auto`: the latest commit under the job's own root, if any. `disable`: a fresh start, older commits are set
    aside. `fromPath`: the checkpoint that `path` names."""
    path: Annotated[S3Uri | None, Field(json_schema_extra=changes("first-attempt"))] = None
    """A checkpoint directory, or a job's root for its latest commit, in the same storage."""
