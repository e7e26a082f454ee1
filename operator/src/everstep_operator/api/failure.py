"""`spec.failurePolicy`: how often to restart, when to give up, and what single causes mean."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from everstep_operator.api.common import DnsLabel, PositiveSeconds, Seconds, SpecModel, changes, rule, rules

Action = Literal["FailJob", "Restart", "RestartUncounted"]
Reason = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z][A-Za-z0-9]*$")]
ConditionType = Annotated[
    str, StringConstraints(min_length=1, max_length=316, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?$")
]
ExitCode = Annotated[int, Field(ge=1, le=255, json_schema_extra={"format": "int32"})]


class OnExitCodes(SpecModel):
    """Matches the exit code of the process that failed first: the worker's own if known, else the container's."""

    operator: Annotated[Literal["In", "NotIn"], Field(json_schema_extra=changes("live"))] = "In"
    """Whether the code must be one of `values` or none of them."""
    values: Annotated[
        list[ExitCode],
        Field(min_length=1, max_length=255, json_schema_extra=changes("live", **{"x-kubernetes-list-type": "set"})),
    ]
    """Exit codes. A process that a signal ended has 128 plus the signal's number."""


class OnPodCondition(SpecModel):
    """Matches a condition of the failed pod, e.g. `DisruptionTarget`."""

    type: Annotated[ConditionType, Field(json_schema_extra=changes("live"))]
    """The condition's type."""
    status: Annotated[Literal["True", "False", "Unknown"], Field(json_schema_extra=changes("live"))] = "True"
    """The condition's status."""


class FailureRule(SpecModel):
    """What a failure of one kind means. It has exactly one of onExitCodes, onReasons and onPodConditions."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "[has(self.onExitCodes), has(self.onReasons), has(self.onPodConditions)].exists_one(x, x)",
                "needs exactly one of onExitCodes, onReasons and onPodConditions",
            )
        )
    )

    name: Annotated[DnsLabel, Field(json_schema_extra=changes("live"))]
    """Name of the rule; status and events say which rule decided."""
    action: Annotated[Action, Field(json_schema_extra=changes("live"))]
    """`FailJob`: end the job as Failed. `Restart`: the next attempt, counted against maxRestarts.
    `RestartUncounted`: the next attempt, not counted."""
    on_exit_codes: Annotated[OnExitCodes | None, Field(json_schema_extra=changes("live"))] = None
    """Exit codes that match."""
    on_reasons: Annotated[
        list[Reason] | None,
        Field(min_length=1, max_length=20, json_schema_extra=changes("live", **{"x-kubernetes-list-type": "set"})),
    ] = None
    """Reasons of a container or a pod that match, e.g. `OOMKilled`, `Evicted`."""
    on_pod_conditions: Annotated[
        list[OnPodCondition] | None,
        Field(min_length=1, max_length=20, json_schema_extra=changes("live", **{"x-kubernetes-list-type": "atomic"})),
    ] = None
    """Conditions of the failed pod that match; any of them is enough."""


class Backoff(SpecModel):
    """The wait before an attempt that follows attempts without a new commit. After progress, restarts are immediate."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("self.initialSeconds <= self.maxSeconds", "must not exceed maxSeconds", path=".initialSeconds")
        )
    )

    initial_seconds: Annotated[Seconds, Field(json_schema_extra=changes("live"))] = 5
    """The wait after the first attempt that committed nothing; it doubles with each further one."""
    max_seconds: Annotated[Seconds, Field(json_schema_extra=changes("live"))] = 300
    """The longest wait."""


class FailurePolicy(SpecModel):
    """What happens when an attempt fails, hangs or does not start."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.rules) || self.rules.all(r, self.rules.exists_one(other, other.name == r.name))",
                "names must be unique",
                path=".rules",
            )
        )
    )

    max_restarts: Annotated[int, Field(ge=0, le=1_000_000, json_schema_extra=changes("live", format="int32"))] = 10
    """How many counted restarts the job may have before it fails."""
    max_restarts_without_progress: Annotated[
        int, Field(ge=1, le=1_000_000, json_schema_extra=changes("live", format="int32"))
    ] = 3
    """How many attempts in a row may end without a new commit before the job fails."""
    stall_timeout_seconds: Annotated[Seconds, Field(json_schema_extra=changes("live"))] = 600
    """An attempt whose heartbeat shows no new step for this long is restarted; 0 turns it off."""
    start_timeout_seconds: Annotated[PositiveSeconds | None, Field(json_schema_extra=changes("live"))] = None
    """An attempt whose pods are not all running after this long has failed. Absent: it waits, and the condition
    Running says what for (an image that cannot be pulled, more nodes than the cluster holds)."""
    backoff: Annotated[Backoff, Field(json_schema_extra=changes("live"))] = Backoff()
    """The wait between attempts that commit nothing."""
    rules: Annotated[
        list[FailureRule],
        Field(max_length=20, json_schema_extra=changes("live", **{"x-kubernetes-list-type": "atomic"})),
    ] = []  # noqa: RUF012  (pydantic copies defaults)
    """Rules for single causes; the first that matches decides. Without one, a failure is a counted restart."""
