"""The attempts that have ended. An attempt's entry is what says that it has: there is one at most, whatever crashes."""

from __future__ import annotations

from collections.abc import Iterable

from everstep import failure as failure_record
from everstep_operator.api import TrainingJobStatus
from everstep_operator.api.common import MAX_COUNT, MAX_STEP
from everstep_operator.api.status import HISTORY_LIMIT, HistoryEntry
from everstep_operator.reconcile import elastic, failure
from everstep_operator.reconcile.attempt import Attempt, own
from everstep_operator.reconcile.classify import Cause
from everstep_operator.reconcile.observation import Observation, PodView

SUSPENDED = "Suspended"
EDITED = "Edited"
REQUESTED = "RestartRequested"
COMPLETED = "Completed"
DEADLINE = "DeadlineExceeded"
SAVED = (SUSPENDED, EDITED, REQUESTED)
"""Ends before which the workers save: what follows must leave them the time for it."""
PLANNED = (*SAVED, COMPLETED, DEADLINE)
"""Ends that are no failure of the gang: its pods may take their time to stop."""


def entry(
    observation: Observation, attempt: Attempt, status: TrainingJobStatus, cause: Cause, rule: str | None = None
) -> HistoryEntry:
    gang = status.gang if status.attempt == attempt.number else None
    started = gang.started if gang else None
    known = status.attempt == attempt.number
    return HistoryEntry(
        attempt=attempt.number,
        reason=cause.reason[:256],
        message=cause.message[:1024],
        rule=rule,
        pod=cause.pod,
        node=cause.node,
        rank=cause.rank if cause.rank is not None and cause.rank <= MAX_COUNT else None,
        code=cause.code,
        from_step=(status.resumed_from.step if status.resumed_from else 0) if known else None,
        to_step=_reached(observation, attempt),
        started=started,
        ended=observation.now,
        seconds=round((observation.now - started).total_seconds(), 1)
        if started and started <= observation.now
        else None,
        next_nodes=elastic.next_nodes(observation, attempt, cause.reason, cause.reason in PLANNED),
    )


def _reached(observation: Observation, attempt: Attempt) -> int | None:
    """The last step that anybody tells of so far: pods that have ended, the heartbeat, or the register."""
    beat, catalog = failure.beating(observation, attempt), own(observation)
    told = [
        *_marks(attempt.pods),
        observation.parted.get(attempt.number),
        beat.heartbeat.step if beat is not None else None,
    ]
    told += [entry.step for entry in catalog.checkpoints if entry.attempt == attempt.number] if catalog else []
    return _furthest(told)


def _marks(pods: Iterable[PodView]) -> list[int | None]:
    return [failure_record.reached(pod.container.message) for pod in pods]


def _furthest(told: Iterable[int | None]) -> int | None:
    known = [step for step in told if step is not None]
    return min(max(known), MAX_STEP) if known else None  # what a tenant's record says may be anything


def describe(observation: Observation, status: TrainingJobStatus) -> TrainingJobStatus:
    """The status with what pods tell that have outlived their attempt: when they end, how far it got. At its end the
    heartbeat was seconds old, and a pod that was torn away tells nothing."""
    told = {item.attempt: [item.to_step, observation.parted.get(item.attempt)] for item in status.history}
    for pod in observation.pods:
        if pod.attempt in told:
            told[pod.attempt] += _marks([pod])
    furthest = {attempt: _furthest(steps) for attempt, steps in told.items()}
    if all(item.to_step == furthest[item.attempt] for item in status.history):
        return status
    history = [item.model_copy(update={"to_step": furthest[item.attempt]}) for item in status.history]
    return status.model_copy(update={"history": history})


def ended(
    observation: Observation, attempt: Attempt, status: TrainingJobStatus, cause: Cause, rule: str | None = None
) -> TrainingJobStatus:
    """The status in which the attempt's end is recorded."""
    others = [item for item in status.history if item.attempt != attempt.number]
    history = [*others, entry(observation, attempt, status, cause, rule)][-HISTORY_LIMIT:]
    return status.model_copy(update={"attempt": max(attempt.number, status.attempt), "history": history})
