"""Conditions, set so that a transition's time says when the answer changed and nothing is written while it has not."""

from __future__ import annotations

from typing import Literal

from everstep_operator.api import Condition, ConditionType, TrainingJobStatus
from everstep_operator.reconcile.observation import Observation

NEXT_ATTEMPT = "NextAttempt"
"""Reason of the condition SpecApplied: an edit that waits for the next attempt."""

PATIENT = (
    "GangRunning",
    "GangStarting",
    "Pending",
    "Restarting",
    "BackOff",
    "Stopping",
    "Suspended",
)
"""Reasons of the condition Running that ask nothing of anybody."""


def put(
    observation: Observation,
    status: TrainingJobStatus,
    kind: ConditionType,
    holds: bool,
    reason: str,
    message: str,
) -> TrainingJobStatus:
    before = status.condition(kind)
    word: Literal["True", "False"] = "True" if holds else "False"
    since = before.last_transition_time if before is not None and before.status == word else observation.now
    condition = Condition(
        type=kind,
        status=word,
        reason=reason[:1024],
        message=message[:4096],
        last_transition_time=since,
        observed_generation=observation.job.metadata.generation,
    )
    others = [item for item in status.conditions if item.type != kind]
    return status.model_copy(update={"conditions": sorted([*others, condition], key=lambda item: item.type)})


def clear(
    observation: Observation, status: TrainingJobStatus, kind: ConditionType, reason: str, message: str
) -> TrainingJobStatus:
    """Set a condition to False, if it was ever set: what never happened needs no line."""
    if status.condition(kind) is None:
        return status
    return put(observation, status, kind, False, reason, message)


def clear_to_true(
    observation: Observation, status: TrainingJobStatus, kind: ConditionType, reason: str, message: str
) -> TrainingJobStatus:
    """Set a condition that tells of what is wrong back to True, if it was ever set."""
    if status.condition(kind) is None:
        return status
    return put(observation, status, kind, True, reason, message)


def drop(status: TrainingJobStatus, kind: ConditionType) -> TrainingJobStatus:
    """Remove a condition about something that is no more, where neither True nor False would be so."""
    left = [item for item in status.conditions if item.type != kind]
    return status if len(left) == len(status.conditions) else status.model_copy(update={"conditions": left})
