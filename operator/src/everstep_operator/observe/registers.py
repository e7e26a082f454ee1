"""A job's catalog and heartbeat: one conditional GET each, ages by our own clock, no pass held up by a dead store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from everstep.catalog import Catalog, Heartbeat, JobCatalog, Snapshot, Unchanged, read_heartbeat
from everstep.errors import CatalogUnreadableError, InvalidOperationError
from everstep_operator.memory import JobMemory, Registers
from everstep_operator.reconcile.observation import HeartbeatView, Problem, Stored
from everstep_operator.storage import JobStorage, classify

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that a pass waits for a poll; what comes later is there for the next pass."""


@dataclass(frozen=True, slots=True)
class Polled:
    """What one look gave: the catalog (None: there is none) and the heartbeat of the attempt in force."""

    snapshot: Snapshot | None
    attempt: int
    heartbeat: tuple[Heartbeat, str] | Unchanged | None


async def read_registers(
    storage: JobStorage, memory: JobMemory, status_attempt: int, clock: Callable[[], float]
) -> Stored:
    """Poll both registers, or await the poll that still runs. Never raises for what storage does."""
    known = memory.registers
    future = known.polling
    if future is None:
        # Copied here: the thread must not see what a later pass makes of the memory.
        snapshot, beat = known.snapshot, (known.heartbeat_attempt, known.heartbeat_token)
        future = storage.lane.submit(lambda: _poll(storage.catalog, snapshot, beat, status_attempt))
    problem: Problem | None = None
    known.polling = future
    try:
        polled = await storage.lane.wait(future, PATIENCE)
    except Exception as error:
        problem = classify(error)
        if problem is None:
            known.polling = None
            raise
    else:
        _remember(known, polled, clock())
    known.unanswered = problem is not None
    if future.done():
        known.polling = None
    return stored(memory, clock(), problem)


def stored(memory: JobMemory, now: float, problem: Problem | None = None, fenced: Catalog | None = None) -> Stored:
    """What is known now; with `fenced`, the document that our own fence just wrote, which nobody has claimed yet."""
    known = memory.registers
    catalog = fenced or (known.snapshot.catalog if known.snapshot else None)
    beat = known.heartbeat
    if beat is not None and catalog is not None and beat.attempt < catalog.attempt:
        beat = None
    ages = (now - known.beat_at, now - known.news_at, now - known.phase_at)
    view = None if beat is None else HeartbeatView(beat, *ages)
    absent = now - known.absent_at if view is None and known.absent_at is not None else None
    age = None if memory.swept_at is None else now - memory.swept_at
    former = known.former if beat is not None else None
    return Stored(catalog, view, problem, heartbeat_absent=absent, swept_age=age, former=former)


def _poll(catalog: JobCatalog, known: Snapshot | None, beat: tuple[int, str | None], status_attempt: int) -> Polled:
    found = catalog.poll(known.token if known else None)
    snapshot = known if isinstance(found, Unchanged) else found
    attempt = max(status_attempt, snapshot.catalog.attempt if snapshot else 0)
    if attempt == 0:
        return Polled(snapshot, 0, None)
    try:
        heartbeat = read_heartbeat(catalog.store, attempt, beat[1] if beat[0] == attempt else None)
    except (CatalogUnreadableError, InvalidOperationError) as error:
        log.warning("the heartbeat is ignored: %s", error)  # it decides nothing, and anybody can write there
        heartbeat = None
    return Polled(snapshot, attempt, heartbeat)


def _remember(known: Registers, polled: Polled, now: float) -> None:
    known.snapshot = polled.snapshot
    if known.unanswered:
        _forgive(known, now - known.answered)
    known.answered = now
    if isinstance(polled.heartbeat, Unchanged):
        return
    before, attempt = known.heartbeat, known.heartbeat_attempt
    known.heartbeat_attempt = polled.attempt
    if polled.heartbeat is None:
        known.heartbeat, known.heartbeat_token = None, None
        if known.absent_at is None or attempt != polled.attempt:
            known.absent_at = now
        return
    known.absent_at = None
    known.heartbeat, known.heartbeat_token = polled.heartbeat
    same = before is not None and attempt == polled.attempt
    if not same:
        known.former = None
    elif before is not None and before.epoch < known.heartbeat.epoch:
        known.former = before
    if not same or before is None or before.beat != known.heartbeat.beat:
        known.beat_at = now
    if not same or before is None or _news(before) != _news(known.heartbeat):
        known.news_at = now
    if not same or before is None or before.phase != known.heartbeat.phase:
        known.phase_at = now


def _news(beat: Heartbeat) -> tuple[object, ...]:
    """What changes when a worker group gets on. `phase_since` tells two evaluations apart, and is compared with nothing
    but itself."""
    return beat.epoch, beat.phase, beat.phase_since, beat.step


def _forgive(known: Registers, seconds: float) -> None:
    """The time in which storage gave no answer is nobody's standstill: heartbeats go through it, too."""
    known.beat_at += seconds
    known.news_at += seconds
    known.phase_at += seconds
    if known.absent_at is not None:
        known.absent_at += seconds
