"""Saves of one worker group: a transaction on the training's thread, or a flight that goes on beside it.

Both are the same steps: pick a location, look at the state and copy it, store the files, gather what the ranks have
stored, write the metadata and commit. All public methods but those of a flight are collective.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from everstep.catalog import Entry, File, Location, Manifest, Progress
from everstep.catalog.progress import SaveTimes
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.restoring.matching import mesh_of
from everstep.checkpoint.saving.flight import Flight
from everstep.checkpoint.saving.gate import Hold
from everstep.checkpoint.saving.planning import Plan
from everstep.checkpoint.saving.runway import Runway
from everstep.checkpoint.saving.shards import Report, Shards, store_metadata
from everstep.checkpoint.session import Session
from everstep.errors import InvalidOperationError

log = logging.getLogger("everstep")

Picked = tuple[int, Location | None]
"""The step that a rank is at; of rank 0 the location for it too."""


@dataclass(frozen=True)
class Record:
    """What a manifest says beside the files."""

    progress: Progress
    metrics: Mapping[str, float]
    score: float | None
    score_of: str | None
    config_digest: str | None
    config: Any
    custom: Mapping[str, Any]


@dataclass
class Draft:
    """A save under way. `reports`: on rank 0 those of all ranks, once their files are stored."""

    step: int
    location: Location
    started: datetime
    began: float
    plan: Plan | None = None
    mesh: dict[str, int] = field(default_factory=dict)
    """Looked at where training stands: in forward and backward FSDP puts other tensors in the parameters' places."""
    reports: list[Report] | None = None


@dataclass(frozen=True)
class Done:
    """A save that stands. `times` is rank 0's; the slowest rank counts."""

    entry: Entry
    times: SaveTimes


class Saves:
    def __init__(self, session: Session, shards: Shards, assets: Mapping[str, bytes]) -> None:
        """`assets`: files that each save keeps beside the shards, by name."""
        self.draft: Draft | None = None
        self.written = False
        """Whether the state of the last save could be captured and stored by all ranks."""
        self._session = session
        self._shards = shards
        self._assets = assets
        self._gang = session.gang

    def begin(self, step: int) -> None:
        self._check_closed(f"begin({step})")
        self.written = False
        began = time.monotonic()
        self._session.claim()
        _, told = self._gang.compare(lambda: (None, self._pick(step)))
        self.draft = Draft(step, _agreed(told, "begin"), datetime.now(UTC), began)

    def _pick(self, step: int) -> Picked:
        return step, self._session.claimed().new_location(step) if self._gang.leads else None

    def write(self, counters: Mapping[str, int]) -> None:
        """Write every rank's shards. Where one rank fails, the save is given up on all."""
        draft = self._open_draft("save_state")
        if draft.reports is not None:
            raise InvalidOperationError(f"save_state: the state of step {draft.step} is already written")
        try:
            prepared, _ = self._shards.prepare(counters, late=lambda _: True, tell=lambda: None)
            draft.plan, draft.mesh = prepared.plan, mesh_of(self._session.app.model)
            draft.reports = self._gang.collect(lambda: self._shards.finish(prepared, draft.location))
            self.written = True
        except BaseException:
            self.draft = None
            raise

    def commit(self, record: Record) -> Done:
        draft = self._open_draft("commit")
        if draft.reports is None:
            raise InvalidOperationError(f"commit: step {draft.step} has no state yet; call save_state() first")
        self.draft = None  # whatever comes: a save is committed once or never
        return self._gang.lead(lambda: self._commit(draft, record, None))

    def launch(
        self,
        step: int,
        waited: float,
        counters: Mapping[str, int],
        record: Record,
        runway: Runway,
        stood: Callable[[Done], None],
    ) -> Flight[Done]:
        """Look at the state and copy what cannot wait; the rest flies from `runway`. `stood` runs there, on rank 0,
        once the save is committed. `waited`: for how many seconds training has stood still already.

        Raises InvalidOperationError where the ranks are at different steps.
        """
        self._check_closed(f"the save of step {step}")
        self.written = False
        started, began = datetime.now(UTC), time.monotonic() - waited
        self._session.claim()
        prepared, told = self._shards.prepare(counters, late=runway.late(), tell=lambda: self._pick(step))
        draft = Draft(step, _agreed(told, "save"), started, began, prepared.plan, mesh_of(self._session.app.model))
        self.written = True
        boundary = time.monotonic() - draft.began

        def commit() -> Done:
            done = self._commit(draft, record, max(report.times.blocked for report in draft.reports or ()))
            stood(done)
            return done

        def fly(beside: Gang, hold: Hold) -> Done:
            def store() -> Report:
                report = self._shards.finish(prepared, draft.location)
                return report.blocked_for(boundary + hold.waited)

            draft.reports = beside.collect(store)
            return beside.lead(commit)

        return runway.launch(step, prepared, fly)

    def stands(self, step: int) -> bool:
        """Whether this worker group has committed `step` after all, in a swap whose answer never came."""

        def ask() -> bool:
            latest = self._session.job.require().latest()
            return latest is not None and (latest.step, latest.epoch) == (step, self._session.claimed().epoch)

        return self._gang.lead(ask)

    def abort(self) -> None:
        """Give the open save up; what was written is swept later."""
        self.draft = None

    def _check_closed(self, call: str) -> None:
        if self.draft is not None:
            raise InvalidOperationError(
                f"{call}: the save of step {self.draft.step} is still open; commit() or abort() it"
            )

    def _open_draft(self, call: str) -> Draft:
        if self.draft is None:
            raise InvalidOperationError(f"{call}: no save is open; call begin(step) first")
        return self.draft

    def _commit(self, draft: Draft, record: Record, blocked: float | None) -> Done:
        """`blocked`: None where training waits to the end."""
        assert draft.plan is not None
        reports = draft.reports or []
        began = time.monotonic()
        files = store_metadata(self._session.store, draft.location, draft.plan, reports, self._assets)
        times = SaveTimes(  # before the commit: nothing may fail once the save stands
            step=draft.step,
            bytes=0,
            staged_seconds=max(report.times.staged for report in reports),
            uploaded_seconds=max(report.times.uploaded for report in reports),
            committed_seconds=0,
            blocked_seconds=0,
            retries=sum(report.times.retries for report in reports),
        )
        entry = self._session.claimed().commit(self._manifest(draft, record, files))
        ended = time.monotonic()
        measured = {
            "bytes": entry.bytes,
            "committed_seconds": ended - began,
            "blocked_seconds": ended - draft.began if blocked is None else blocked,
        }
        return Done(entry, times.model_copy(update=measured))

    def _manifest(self, draft: Draft, record: Record, files: tuple[File, ...]) -> Manifest:
        claimed = self._session.claimed()
        return Manifest(
            location=str(draft.location),
            step=draft.step,
            epoch=claimed.epoch,
            attempt=claimed.attempt,
            world_size=self._gang.world_size,
            mesh=draft.mesh,
            files=files,
            progress=record.progress,
            metrics=dict(record.metrics),
            score=record.score,
            score_of=record.score_of if record.score is not None else None,
            started=draft.started,
            written=datetime.now(UTC),
            versions=versions(),
            config_digest=record.config_digest,
            config=record.config,
            custom=dict(record.custom),
        )


def _agreed(told: list[Picked], call: str) -> Location:
    """`told`: by rank. The location, which rank 0 has picked."""
    steps = sorted({step for step, _ in told})
    if len(steps) > 1:
        raise InvalidOperationError(f"{call}: a save has one step, but the ranks are at {', '.join(map(str, steps))}")
    location = told[0][1]
    assert location is not None
    return location


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("everstep", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
