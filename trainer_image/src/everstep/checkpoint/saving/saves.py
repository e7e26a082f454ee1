"""Saves of one worker group: a transaction on the training's thread, or a flight that goes on beside it.

Both are the same steps: pick a location, look at the state and copy it; store the files and, while they are under way,
the metadata that describes those of all ranks; commit. All public methods but those of a flight are collective.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from everstep.catalog import Entry, File, Location, Manifest, Progress
from everstep.catalog.progress import SaveTimes
from everstep.catalog.register import Snapshot
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.restoring.matching import mesh_of
from everstep.checkpoint.saving.flight import Flight
from everstep.checkpoint.saving.gate import Hold
from everstep.checkpoint.saving.runway import Runway
from everstep.checkpoint.saving.shards import Prepared, Report, Sending, Shards, Times, store_metadata
from everstep.checkpoint.session import Session
from everstep.errors import CheckpointError, InvalidOperationError, StorageError, StorageUnavailableError

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


@dataclass(frozen=True)
class Written:
    """What all ranks have stored. `files`, and `register` as it was meanwhile, are rank 0's to know. `blocked`: for how
    many seconds training stood still at the slowest rank."""

    files: tuple[File, ...]
    register: Snapshot | None
    times: list[Times]
    blocked: float


@dataclass
class Draft:
    """A save under way."""

    step: int
    location: Location
    started: datetime
    began: float
    mesh: dict[str, int] = field(default_factory=dict)
    """Looked at where training stands: in forward and backward FSDP puts other tensors in the parameters' places."""
    written: Written | None = None


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
        self.ever_written = False
        """Whether that of any was."""
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
        if draft.written is not None:
            raise InvalidOperationError(f"save_state: the state of step {draft.step} is already written")
        try:
            prepared, _ = self._shards.prepare(counters, late=lambda _: True, tell=lambda: None)
            draft.mesh = mesh_of(self._session.app.model)
            draft.written = self._store(self._gang, prepared, draft.location, lambda: 0)
            self.written = self.ever_written = True
        except BaseException:
            self.draft = None
            raise

    def commit(self, record: Record) -> Done:
        draft = self._open_draft("commit")
        if draft.written is None:
            raise InvalidOperationError(f"commit: step {draft.step} has no state yet; call save_state() first")
        self.draft = None  # whatever comes: a save is committed once or never
        return self._gang.lead(lambda: self._commit(draft, record, lambda _: None, waits=True))

    def launch(
        self,
        step: int,
        waited: float,
        counters: Mapping[str, int],
        record: Record,
        runway: Runway,
        stood: Callable[[Done], None],
        tidy: Callable[[], None],
    ) -> Flight[Done]:
        """Look at the state and copy what cannot wait; the rest flies from `runway`. There, on rank 0, `stood` runs as
        soon as the save is committed, and `tidy` when nothing is left to do for it. `waited`: for how many seconds
        training has stood still already.

        Raises InvalidOperationError where the ranks are at different steps.
        """
        self._check_closed(f"the save of step {step}")
        self.written = False
        started, began = datetime.now(UTC), time.monotonic() - waited
        self._session.claim()
        prepared, told = self._shards.prepare(counters, late=runway.late(), tell=lambda: self._pick(step))
        draft = Draft(step, _agreed(told, "save"), started, began, mesh_of(self._session.app.model))
        self.written = self.ever_written = True
        boundary = time.monotonic() - draft.began

        def commit() -> Done:
            done = self._commit(draft, record, stood, waits=False)
            tidy()
            return done

        def fly(beside: Gang, hold: Hold) -> Done:
            draft.written = self._store(beside, prepared, draft.location, lambda: boundary + hold.waited)
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

    def _store(self, gang: Gang, prepared: Prepared, location: Location, blocked: Callable[[], float]) -> Written:
        """Collective. While an uploader has the files, rank 0 hears where all have put what, stores the metadata and
        looks at the register: none of that is left to do once the last byte is stored. `blocked`: asked once all is
        staged.
        """
        sending: Sending | None = None

        def stage() -> Report:
            nonlocal sending
            sending = self._shards.finish(prepared, location)
            return sending.report

        def describe() -> tuple[File, ...]:
            return store_metadata(self._session.store, location, prepared.plan, reports, self._assets)

        def store() -> tuple[tuple[tuple[File, ...], Snapshot | None], tuple[Times, float]]:
            assert sending is not None
            if not gang.leads:
                return ((), None), (sending.wait(), blocked())
            early, register = None, None
            with contextlib.suppress(StorageUnavailableError):  # the shards may wait for storage to come back
                early = describe()
            with contextlib.suppress(CheckpointError):  # the swap reads it then
                register = self._session.job.register.read()
            times = sending.wait()
            return (early if early is not None else describe(), register), (times, blocked())

        try:
            reports = gang.collect(stage)
            (files, register), told = gang.compare(store)
        except Exception:
            if sending is not None:
                with contextlib.suppress(StorageError):
                    sending.wait()
            raise
        return Written(files, register, [times for times, _ in told], max(seconds for _, seconds in told))

    def _commit(self, draft: Draft, record: Record, stood: Callable[[Done], None], waits: bool) -> Done:
        """`waits`: whether training stands still to the end."""
        assert draft.written is not None
        began = time.monotonic()
        done: Done | None = None
        times = SaveTimes(  # before the commit: nothing may fail once the save stands
            step=draft.step,
            bytes=0,
            staged_seconds=max(each.staged for each in draft.written.times),
            uploaded_seconds=max(each.uploaded for each in draft.written.times),
            committed_seconds=0,
            blocked_seconds=draft.written.blocked,
            retries=sum(each.retries for each in draft.written.times),
        )

        def tell(entry: Entry) -> None:
            nonlocal done
            ended = time.monotonic()
            measured = {"bytes": entry.bytes, "committed_seconds": ended - began}
            if waits:
                measured["blocked_seconds"] = ended - draft.began
            done = Done(entry, times.model_copy(update=measured))
            stood(done)

        self._session.claimed().commit(self._manifest(draft, record), draft.written.register, tell)
        assert done is not None
        return done

    def _manifest(self, draft: Draft, record: Record) -> Manifest:
        assert draft.written is not None
        claimed = self._session.claimed()
        return Manifest(
            location=str(draft.location),
            step=draft.step,
            epoch=claimed.epoch,
            attempt=claimed.attempt,
            world_size=self._gang.world_size,
            mesh=draft.mesh,
            files=draft.written.files,
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
