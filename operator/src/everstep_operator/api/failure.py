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
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"[^*]")]
RECENT_LIMIT = 100
"""Restarts whose times the status remembers for `windowSeconds`."""


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
    """What a failure of one kind means. It has one of onExitCodes, onReasons, onPodConditions and onMessages."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "[has(self.onExitCodes), has(self.onReasons), has(self.onPodConditions), has(self.onMessages)]"
                ".exists_one(x, x)",
                "needs exactly one of onExitCodes, onReasons, onPodConditions and onMessages",
            )
        )
    )

    name: Annotated[DnsLabel, Field(json_schema_extra=changes("live"))]
    """Name of the rule; status and events say which rule decided."""
    action: Annotated[Action, Field(json_schema_extra=changes("live"))]
    """`FailJob`: end the job as Failed. `Restart`: the next attempt, counted against maxRestarts.
    `RestartUncounted`: the next attempt, not counted."""
    on_exit_codes: OnExitCodes | None = None
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
    on_messages: Annotated[
        list[Pattern] | None,
        Field(min_length=1, max_length=20, json_schema_extra=changes("live", **{"x-kubernetes-list-type": "atomic"})),
    ] = None
    """Parts of the failure's message that match, as the history shows it, e.g. `CUDA error*device-side assert`. `*`
    stands for any text; upper and lower case are the same."""


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


class PhaseTimeouts(SpecModel):
    """How long an attempt may stay in what is not training, in seconds; 0 turns a limit off."""

    starting: Annotated[Seconds, Field(json_schema_extra=changes("live"))] = 1800
    """From all pods running until the workers have claimed the job: imports, the data set, the rendezvous."""
    restoring: Annotated[Seconds, Field(json_schema_extra=changes("live"))] = 3600
    """The load of the checkpoint to resume."""
    compiling: Annotated[Seconds, Field(json_schema_extra=changes("live"))] = 3600
    """From then until the first step has ended, and what the script itself shows as `compiling`."""
    saving: Annotated[Seconds, Field(json_schema_extra=changes("live"))] = 3600
    """One save that training waits for."""
    evaluating: Annotated[Seconds, Field(json_schema_extra=changes("live"))] = 7200
    """One evaluation."""
    finished: Annotated[Seconds, Field(json_schema_extra=changes("live"))] = 7200
    """From the end of the training until the pods have ended: what the script still does, e.g. an export."""


class FailurePolicy(SpecModel):
    """What happens when an attempt fails, hangs or does not start."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.rules) || self.rules.all(r, self.rules.exists_one(other, other.name == r.name))",
                "names must be unique",
                path=".rules",
            ),
            rule(
                f"!has(self.windowSeconds) || self.maxRestarts <= {RECENT_LIMIT}",
                f"must not exceed {RECENT_LIMIT} where windowSeconds is set",
                path=".maxRestarts",
            ),
        )
    )

    max_restarts: Annotated[int, Field(ge=0, le=1_000_000, json_schema_extra=changes("live", format="int32"))] = 10
    """How many counted restarts the job may have before it fails. Disruptions (a drained, preempted, evicted or deleted
    pod, a lost node, SIGTERM from outside) and starts that came to nothing do not count, unless a rule says so."""
    window_seconds: Annotated[PositiveSeconds | None, Field(json_schema_extra=changes("live"))] = None
    """Only counted restarts of the last so many seconds are held against maxRestarts. Absent: all of them."""
    max_restarts_without_progress: Annotated[
        int, Field(ge=1, le=1_000_000, json_schema_extra=changes("live", format="int32"))
    ] = 3
    """How many attempts in a row may end without a new commit before the job fails; those that do not count aside."""
    stall_timeout_seconds: Annotated[Seconds, Field(json_schema_extra=changes("live"))] = 600
    """A training attempt whose heartbeat shows no new step for this long is restarted; 0 turns it off, and leaves those
    of phaseTimeoutSeconds on."""
    phase_timeout_seconds: PhaseTimeouts = PhaseTimeouts()
    """The same for what is not training: an attempt that stays in one of these for longer is restarted."""
    save_timeout_seconds: Annotated[Seconds, Field(json_schema_extra=changes("next-attempt"))] = 0
    """How long the saves of an attempt may fail, one after the other, before its workers end with exit code 74 and the
    attempt has failed. 0: that alone never ends it; the condition StorageReady says that saves fail. Heartbeats go to
    the same storage: where rank 0 cannot write at all, stallTimeoutSeconds comes first unless it is longer."""
    start_timeout_seconds: Annotated[Seconds, Field(json_schema_extra=changes("live"))] = 1200
    """An attempt whose pods are not all running after this long gives all of them back and is tried again after the
    back-off, for ever and uncounted, unless a rule on the reason StartTimeout says otherwise: so two gangs that hold
    half of what both need do not wait for each other. The condition Running says what it waits for. Up to a quarter is
    added, another part for each attempt. 0: it waits for ever."""
    backoff: Backoff = Backoff()
    """The wait between attempts that commit nothing."""
    rules: Annotated[
        list[FailureRule],
        Field(max_length=20, json_schema_extra=changes("live", **{"x-kubernetes-list-type": "atomic"})),
    ] = []  # noqa: RUF012  (pydantic copies defaults)
    """Rules for single causes; the first that matches decides. Without one, a failure is a counted restart."""
