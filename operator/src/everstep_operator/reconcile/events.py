"""Events, told from how the status changed. A handful an attempt: a commit each step must not become a storm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from everstep_operator.api import Condition, ConditionType, Phase, TrainingJobStatus
from everstep_operator.reconcile import conditions
from everstep_operator.reconcile.history import COMPLETED, EDITED, REQUESTED, SUSPENDED
from everstep_operator.reconcile.plan import Event

RECENT = timedelta(minutes=5)
"""A process that died was replaced within this time. What is older it has told, and the API server may have forgotten.
"""


def untold(status: TrainingJobStatus, now: datetime) -> tuple[Event, ...]:
    """What whoever wrote this status may have had no time to tell. The names of events keep what was told from being
    told twice; they hold the attempt of the status, so only of that one anything is told again."""

    def recent(moment: datetime | None) -> bool:
        return moment is not None and now - moment < RECENT

    gang, last = status.gang, status.history[-1] if status.history else None
    begun = gang.started if gang is not None else None
    before: dict[str, object] = {
        "conditions": [
            each
            for each in status.conditions
            if not recent(each.last_transition_time) or (begun is not None and each.last_transition_time < begun)
        ]
    }
    if last is not None and last.attempt == status.attempt and recent(last.ended):
        before["history"] = status.history[:-1]
    if recent(status.completion_time) or (gang is not None and recent(gang.running)):
        before["phase"] = None
    if gang is not None and recent(gang.started):
        before |= {"attempt": status.attempt - 1, "last_checkpoint": None}
    before |= _untold_details(status, lambda moment: recent(moment) and (begun is None or moment >= begun))
    return derive(status.model_copy(update=before), status)


def _untold_details(status: TrainingJobStatus, may_be_untold: Callable[[datetime], bool]) -> dict[str, object]:
    """What happens within an attempt, as it was before the last time."""
    restarts, checkpoints, requests = status.restarts, status.checkpoints, status.requests
    before: dict[str, object] = {}
    # Without a gang the last restart was one of all pods.
    if restarts and restarts.in_place and status.gang and restarts.last_time and may_be_untold(restarts.last_time):
        before["restarts"] = restarts.model_copy(update={"in_place": restarts.in_place - 1})
    if checkpoints and checkpoints.quarantined_time and may_be_untold(checkpoints.quarantined_time):
        count = (checkpoints.quarantined or 1) - 1
        before["checkpoints"] = checkpoints.model_copy(update={"quarantined": count})
    if requests and requests.checkpoint_saved_time and may_be_untold(requests.checkpoint_saved_time):
        before["requests"] = requests.model_copy(update={"checkpoint_saved": None})
    return before


def derive(before: TrainingJobStatus, after: TrainingJobStatus) -> tuple[Event, ...]:
    if before == after:
        return ()
    return tuple(
        event
        for part in (
            *(_storage, _ended, _edited, _created, _in_place),
            *(_waiting, _running, _committed, _quarantined, _saved, _finished),
        )
        for event in part(before, after)
    )


def _ended(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[Event]:
    known = {entry.attempt for entry in before.history}
    for entry in after.history:
        if entry.attempt in known or entry.reason == COMPLETED:
            continue
        key = str(entry.attempt)
        if entry.reason == SUSPENDED:
            yield Event("Normal", "Suspended", f"attempt {key} is stopped; its workers save before they end", key)
        elif entry.reason in (EDITED, REQUESTED):
            yield Event("Normal", entry.reason, f"attempt {key} saves and stops: {entry.message}", key)
        else:
            yield Event("Warning", "GangFailed", f"attempt {key}: {entry.message}", key)


def _edited(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[Event]:
    """An edit that the gang does not follow."""
    kind = ConditionType.SPEC_APPLIED
    for event in _turned(before.condition(kind), after.condition(kind)):
        yield replace(event, type="Normal") if event.reason == conditions.NEXT_ATTEMPT else event


def _created(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[Event]:
    if after.attempt == before.attempt or after.gang is None or after.fence is None:
        return
    nodes = after.gang.nodes or 0
    pods = f"created {nodes} pod{'s' if nodes != 1 else ''} of attempt {after.attempt}"
    start = after.resumed_from
    how = f"resuming step {start.step} from {start.location}" if start else "starting afresh"
    yield Event("Normal", "GangCreated", f"{pods}, {how}", str(after.attempt))


def _in_place(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[Event]:
    old, new = before.restarts, after.restarts
    if new is not None and new.in_place > (old.in_place if old else 0) and after.fence is not None:
        start = after.resumed_from
        how = f"resuming step {start.step}" if start else "starting afresh"
        yield Event("Warning", "RestartedInPlace", f"{new.last_reason}, {how}", str(after.fence.claimed))


def _running(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[Event]:
    if after.phase is Phase.RUNNING and before.phase is not Phase.RUNNING and after.gang is not None:
        yield Event("Normal", "Running", f"attempt {after.attempt}: {after.gang.summary}", str(after.attempt))


def _committed(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[Event]:
    """Only an attempt's first."""
    old, new = before.last_checkpoint, after.last_checkpoint
    if new is None or new.attempt != after.attempt or (old is not None and old.attempt == new.attempt):
        return
    message = f"attempt {new.attempt} committed its first checkpoint: step {new.step}, {new.size}"
    yield Event("Normal", "CheckpointCommitted", message, str(new.attempt))


def _quarantined(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[Event]:
    old = before.checkpoints.quarantined if before.checkpoints else None
    new = after.checkpoints.quarantined if after.checkpoints else None
    if (new or 0) > (old or 0):
        message = "a checkpoint's bytes did not verify; it was set aside, and the one before is used"
        yield Event("Warning", "CheckpointQuarantined", message, str(new))


def _storage(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[Event]:
    if after.phase is not None and after.phase.finished:
        return  # the end tells of it
    yield from _turned(before.condition(ConditionType.STORAGE_READY), after.condition(ConditionType.STORAGE_READY))


def _turned(old: Condition | None, new: Condition | None) -> Iterator[Event]:
    """A condition has become False, or is so for another reason."""
    if (
        new is None
        or new.status != "False"
        or (old is not None and (old.status, old.reason) == (new.status, new.reason))
    ):
        return
    yield Event("Warning", new.reason, new.message, new.last_transition_time.isoformat())


def _waiting(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[Event]:
    """Pods that cannot start: no image, no room, refused by the API server."""
    old, new = before.condition(ConditionType.RUNNING), after.condition(ConditionType.RUNNING)
    storage = after.condition(ConditionType.STORAGE_READY)
    if new is None or new.reason in conditions.PATIENT or (storage is not None and storage.reason == new.reason):
        return
    if not (after.phase is not None and after.phase.finished):
        yield from _turned(old, new)


def _saved(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[Event]:
    """A checkpoint that an annotation asked for."""
    value = after.requests.checkpoint_saved if after.requests else None
    if value is None or value == (before.requests.checkpoint_saved if before.requests else None):
        return
    last = after.last_checkpoint
    what = f"the latest checkpoint is step {last.step}" if last else "there was nothing to save"
    yield Event("Normal", "CheckpointSaved", f"checkpoint-now={value[:256]}: {what}", value)


def _finished(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[Event]:
    if after.phase is before.phase or after.phase is None or not after.phase.finished:
        return
    kind = ConditionType.COMPLETE if after.phase is Phase.SUCCEEDED else ConditionType.FAILED
    condition = after.condition(kind)
    message = condition.message if condition else ""
    yield Event("Normal" if kind is ConditionType.COMPLETE else "Warning", after.phase.value, message)
