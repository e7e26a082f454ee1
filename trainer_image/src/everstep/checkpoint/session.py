"""One worker group's dealings with its job's root: the claim, saves as transactions, restores with their fallback.

All public methods are collective: every rank calls them in the same order, and all return or all raise the same error.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch.distributed.tensor import DTensor

from everstep.catalog import (
    AUTO,
    Claimed,
    Entry,
    File,
    JobCatalog,
    Location,
    Manifest,
    Progress,
    Resume,
    ResumePoint,
    Retention,
    Store,
)
from everstep.catalog.transitions import require_claim
from everstep.checkpoint.blocks import patiently
from everstep.checkpoint.environment import JobEnvironment
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.restoring import Loaded, Restoration
from everstep.checkpoint.saving import write_shards
from everstep.checkpoint.state import Application, capture
from everstep.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    FencedError,
    InvalidOperationError,
)

log = logging.getLogger("everstep")


@dataclass
class Draft:
    """A save under way. `files` is filled on rank 0."""

    step: int
    location: Location
    started: datetime
    files: tuple[File, ...] | None = None


@dataclass(frozen=True)
class Identity:
    """What all ranks know of their claim."""

    claim: str
    attempt: int
    epoch: int
    resume: ResumePoint | None


class Session:
    def __init__(self, store: Store, gang: Gang, app: Application, environment: JobEnvironment) -> None:
        self.store = store
        self.gang = gang
        self.app = app
        self.job = JobCatalog(store)
        self.identity: Identity | None = None
        self.draft: Draft | None = None
        self.written = False
        """Whether all ranks' shards of the last save were stored."""
        self._environment = environment
        self._claimed: Claimed | None = None

    # the claim

    def claim(self, resume: Resume = AUTO) -> Identity:
        """Take the right to commit, once. Raises FencedError, CatalogMissingError, OwnerConflictError."""
        if self.identity is None:
            self.identity = self.gang.lead(lambda: self._claim(resume))
        return self.identity

    def _claim(self, resume: Resume) -> Identity:
        environment = self._environment
        patiently(self.job.read)  # the claim itself is not tried again: by then a newer group may hold it
        self._claimed = self.job.claim(environment.attempt, environment.job_uid, resume)
        return Identity(self._claimed.id, self._claimed.attempt, self._claimed.epoch, self._claimed.resume)

    def fenced(self) -> FencedError | None:
        """Whether another group has taken over, as far as storage answers now. Not collective; never raises."""
        if self.identity is None:
            return None
        try:
            require_claim(self.job.read(), self.identity.claim)
        except FencedError as error:
            return error
        except Exception:
            log.debug("could not ask whether this worker group is fenced", exc_info=True)
        return None

    def entry_of(self, step: int) -> Entry:
        """The live entry of a step; raises CheckpointNotFoundError that lists what is there."""
        catalog = self.job.read()
        if catalog is None:
            raise CheckpointNotFoundError(f"{self.store.uri} has no catalog.json, so nothing is committed there")
        live = catalog.live()
        found = next((entry for entry in reversed(live) if entry.step == step), None)
        if found is None:
            steps = ", ".join(str(entry.step) for entry in live) or "none"
            raise CheckpointNotFoundError(f"step {step} is not committed in {self.store.uri}; committed steps: {steps}")
        return found

    # saves

    def begin(self, step: int) -> None:
        if self.draft is not None:
            raise InvalidOperationError(
                f"begin({step}): the save of step {self.draft.step} is still open; commit() or abort() it"
            )
        self.written = False
        steps = sorted(set(self.gang.all_gather(step)))
        if len(steps) > 1:
            raise InvalidOperationError(
                f"begin: a save has one step, but the ranks are at {', '.join(map(str, steps))}"
            )
        self.claim()
        location = self.gang.lead(lambda: self._require_claimed().new_location(step))
        self.draft = Draft(step, location, datetime.now(UTC))

    def write(self, counters: Mapping[str, int]) -> None:
        """Write every rank's shards. Where one rank fails, the save is given up on all."""
        draft = self._open_draft("save_state")
        if draft.files is not None:
            raise InvalidOperationError(f"save_state: the state of step {draft.step} is already written")
        try:
            state = capture(self.app, self.gang, counters)
            draft.files = write_shards(self.store, self.gang, draft.location, state)
            self.written = True
        except BaseException:
            self.draft = None
            raise

    def commit(
        self,
        progress: Progress,
        metrics: Mapping[str, float],
        score: float | None,
        config_digest: str | None,
        custom: Mapping[str, Any],
    ) -> Entry:
        draft = self._open_draft("commit")
        files = draft.files
        if files is None:
            raise InvalidOperationError(f"commit: step {draft.step} has no state yet; call save_state() first")
        self.draft = None  # whatever comes: a save is committed once or never

        def commit() -> Entry:
            claimed = self._require_claimed()
            manifest = Manifest(
                location=str(draft.location),
                step=draft.step,
                epoch=claimed.epoch,
                attempt=claimed.attempt,
                world_size=self.gang.world_size,
                mesh=mesh_of(self.app),
                files=files,
                progress=progress,
                metrics=dict(metrics),
                score=score,
                started=draft.started,
                written=datetime.now(UTC),
                versions=versions(),
                config_digest=config_digest,
                custom=dict(custom),
            )
            return claimed.commit(manifest)

        return self.gang.lead(commit)

    def stands(self, step: int) -> bool:
        """Whether this worker group has committed `step` after all, in a swap whose answer never came."""

        def ask() -> bool:
            latest = self.job.require().latest()
            return latest is not None and (latest.step, latest.epoch) == (step, self._require_claimed().epoch)

        return self.gang.lead(ask)

    def abort(self) -> None:
        """Give the open save up; what was written is swept later."""
        self.draft = None

    def retain(self, policy: Retention) -> None:
        """Remove what nothing keeps. A failure to remove costs space, not the run."""

        def retain() -> None:
            try:
                self.job.retire(policy)
                self.job.finish_removals()
                self.job.sweep()
            except CheckpointError as error:
                log.warning("old checkpoints were not removed: %s", error)

        self.gang.lead(retain)

    def _open_draft(self, call: str) -> Draft:
        if self.draft is None:
            raise InvalidOperationError(f"{call}: no save is open; call begin(step) first")
        return self.draft

    def _require_claimed(self) -> Claimed:
        if self._claimed is None:  # pragma: no cover - rank 0 claims before it gets here
            raise InvalidOperationError("nothing was claimed")
        return self._claimed

    # restores

    def load_resume_point(self) -> Loaded | None:
        """The claimed resume point; where its bytes are damaged, it is quarantined and the one before is loaded."""
        point = self.claim().resume
        restoration = Restoration(self.app, self.gang, self.store)
        while point is not None:
            try:
                return restoration.load(point)
            except CheckpointCorruptError as error:
                point = self._fall_back(point, error, restoration.touched)
        return None

    def load_entry(self, entry: Entry) -> Loaded:
        return Restoration(self.app, self.gang, self.store).load(ResumePoint(entry.step, entry.location, entry.digest))

    def _fall_back(self, point: ResumePoint, error: CheckpointCorruptError, touched: bool) -> ResumePoint | None:
        if point.root is not None:
            raise CheckpointCorruptError(
                f"the checkpoint to start from, {point.uri('')}, is damaged: {error}"
            ) from error
        reason = str(error)
        before = self.gang.lead(lambda: self._require_claimed().quarantine(point.location, reason))
        if self.gang.leads:
            log.warning(
                "step %d is damaged and set aside (%s); falling back to %s",
                point.step,
                reason,
                "a fresh start" if before is None else f"step {before.step}",
            )
        if before is None and touched:
            raise CheckpointCorruptError(
                f"the only checkpoint, of step {point.step}, is damaged ({reason}); it was set aside, but part of it "
                "was loaded already: start again for a fresh run"
            ) from error
        return before


def mesh_of(app: Application) -> dict[str, Any]:
    """Names and sizes of the dimensions of the mesh that the model is sharded over; empty without one."""
    if app.model is None:
        return {}
    for parameter in app.model.parameters():
        if isinstance(parameter, DTensor):
            mesh = parameter.device_mesh
            names = mesh.mesh_dim_names or tuple(f"dim{i}" for i in range(mesh.ndim))
            return {name: mesh.size(i) for i, name in enumerate(names)}
    return {}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("everstep", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
