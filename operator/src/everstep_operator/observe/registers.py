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
    view = None if beat is None else HeartbeatView(beat, beat_age=now - known.beat_at, step_age=now - known.step_at)
    age = None if memory.swept_at is None else now - memory.swept_at
    return Stored(catalog=catalog, heartbeat=view, problem=problem, swept_age=age)


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
    if isinstance(polled.heartbeat, Unchanged):
        if known.heartbeat is not None and known.heartbeat.phase != "training":
            known.step_at = now
        return
    before, attempt = known.heartbeat, known.heartbeat_attempt
    known.heartbeat_attempt = polled.attempt
    if polled.heartbeat is None:
        known.heartbeat, known.heartbeat_token = None, None
        return
    beat, known.heartbeat_token = polled.heartbeat
    known.heartbeat = beat
    same = before is not None and attempt == polled.attempt and before.epoch == beat.epoch
    if not same or before is None or before.beat != beat.beat:
        known.beat_at = now
    if not same or before is None or before.step != beat.step or beat.phase != "training":
        known.step_at = now
