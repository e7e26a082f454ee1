"""Whether a gang that lives gets on: a new step while it trains, an end of whatever else it does.

All ages are the operator's own: counted from when it saw a heartbeat change, and not while it could not read storage.
The writer's clock is never compared with anything. A limit of 0 turns that limit off.
"""

from __future__ import annotations

from dataclasses import dataclass

from everstep.catalog.keys import stacks_key
from everstep_operator.api.failure import FailurePolicy
from everstep_operator.reconcile.attempt import Attempt
from everstep_operator.reconcile.classify import Cause
from everstep_operator.reconcile.observation import HeartbeatView, Observation

REASON = "Stalled"


@dataclass(frozen=True, slots=True)
class Standstill:
    """What a gang is at, for how long it has shown nothing new, and for how long it may."""

    doing: str
    """A phase of the heartbeat; `compiling` until the first step has ended, `starting` without a heartbeat."""
    field: str
    """The field of failurePolicy that holds the limit."""
    limit: int
    age: float


def find(observation: Observation, attempt: Attempt, found: HeartbeatView | None) -> Cause | None:
    """The cause where it stands still for longer than it may. `found`: this attempt's heartbeat."""
    if observation.stored.problem is not None or not attempt.pods or not attempt.launched:
        return None
    policy = observation.job.spec.failure_policy
    at = _starting(observation, policy) if found is None else standstill(policy, found)
    if at is None or not at.limit or at.age < at.limit:
        return None
    where = stacks_key(attempt.number, "*")
    message = f"{_message(at, found)}; stacks of its ranks: {where} under the job's root"
    return Cause(REASON, message, reasons=frozenset({REASON}))


def standstill(policy: FailurePolicy, found: HeartbeatView) -> Standstill:
    """Of a gang that has a heartbeat. One that has failed has the time of a step for its pods to end, too; where steps
    have no limit, that of the end: it trains no more, whatever a step may take."""
    limits = policy.phase_timeout_seconds.model_dump(by_alias=True)
    phase = found.heartbeat.phase
    doing = "compiling" if phase == "training" and found.heartbeat.first_step is None else str(phase)
    if doing in limits:
        return Standstill(doing, f"phaseTimeoutSeconds.{doing}", limits[doing], found.still)
    if doing == "failed" and not policy.stall_timeout_seconds:
        return Standstill(doing, "phaseTimeoutSeconds.finished", limits["finished"], found.still)
    return Standstill(doing, "stallTimeoutSeconds", policy.stall_timeout_seconds, found.still)


def _starting(observation: Observation, policy: FailurePolicy) -> Standstill | None:
    gang, absent = observation.job.status.gang, observation.stored.heartbeat_absent
    if gang is None or gang.running is None or absent is None:
        return None
    age = min(absent, (observation.now - gang.running).total_seconds())
    return Standstill("starting", "phaseTimeoutSeconds.starting", policy.phase_timeout_seconds.starting, age)


def _message(at: Standstill, found: HeartbeatView | None) -> str:
    if found is None:
        what = f"all pods run, but no heartbeat has come for {at.limit} s"
    elif at.doing == "training":
        what = f"no new step for {at.limit} s since step {found.heartbeat.step}"
    elif at.doing in ("finished", "failed"):
        what = f"the workers {at.doing} at step {found.heartbeat.step}, but their pods have not ended for {at.limit} s"
    else:
        what = f"{at.doing} for more than {at.limit} s at step {found.heartbeat.step}"
    if found is not None and found.beat_age >= at.limit:
        what += ", without a sign of life"
    return f"{what} (failurePolicy.{at.field})"
