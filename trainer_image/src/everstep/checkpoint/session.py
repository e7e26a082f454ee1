"""One worker group's dealings with its job's root: the claim, retention, restores with their fallback.

All public methods are collective: every rank calls them in the same order, and all return or all raise the same error.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from everstep.catalog import (
    AUTO,
    Beginning,
    Claimed,
    Entry,
    JobCatalog,
    Resume,
    ResumePoint,
    Retention,
    Store,
)
from everstep.catalog.manifest import BLOCK
from everstep.catalog.transitions import require_claim
from everstep.checkpoint.blocks import covering, patiently, read_verified
from everstep.checkpoint.environment import JobEnvironment
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.local.folder import LocalFolder
from everstep.checkpoint.local.restore import LocalRestore
from everstep.checkpoint.restoring.restoration import Loaded, Restoration, reading
from everstep.checkpoint.state.application import Application
from everstep.errors import (
    CheckpointCorruptError,
    CheckpointError,
    FencedError,
    InvalidOperationError,
    StorageUnavailableError,
)

log = logging.getLogger("everstep")


@dataclass(frozen=True)
class Identity:
    """What all ranks know of their claim."""

    claim: str
    attempt: int
    epoch: int
    resume: ResumePoint | None
    begun: Beginning | None = None
    """Of the group before it."""


class Session:
    def __init__(
        self,
        store: Store,
        gang: Gang,
        app: Application,
        environment: JobEnvironment,
        local: LocalFolder | None = None,
    ) -> None:
        self.store = store
        self.gang = gang
        self.app = app
        self.job = JobCatalog(store)
        self.identity: Identity | None = None
        self.local = local
        self.local_save: str | None = None
        """The save of the local tier that was resumed."""
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
        known = patiently(self.job.register.read)  # the claim is not tried again: by then a newer group may hold it
        self._claimed = claimed = self.job.claim(
            environment.attempt, environment.job_uid, resume, self.local is not None, known
        )
        return Identity(claimed.id, claimed.attempt, claimed.epoch, claimed.resume, claimed.catalog.begun)

    def begin(self) -> None:
        """Before the first step: from here on what this group keeps on its nodes counts, and not its predecessor's."""
        if self.local is not None:
            self.claim()
            self.gang.lead(lambda: patiently(lambda: self.claimed().begin(self.local_save)))

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

    # what is kept

    def retain(self, policy: Retention) -> None:
        """Remove what nothing keeps. A failure to remove costs space, not the run."""

        self.gang.lead(lambda: self.remove_expendable(policy))

    def remove_expendable(self, policy: Retention) -> None:
        """`retain`, for rank 0 alone."""
        try:
            self.job.retire(policy)
            self.job.finish_removals()
            self.job.sweep()
        except CheckpointError as error:
            log.warning("old checkpoints were not removed: %s", error)
        except Exception:  # the save before it stands, and must not count as failed
            log.exception("old checkpoints were not removed")

    def claimed(self) -> Claimed:
        """On rank 0, after `claim`."""
        if self._claimed is None:  # pragma: no cover - rank 0 claims before it gets here
            raise InvalidOperationError("nothing was claimed")
        return self._claimed

    # restores

    def load_resume_point(self) -> Loaded | None:
        """A local save that is newer than the claimed resume point, else that; where its bytes are damaged, it is
        quarantined and the one before is loaded."""
        point = self.claim().resume
        restoration = Restoration(self.app, self.gang, self.store)
        local = None if self.local is None else LocalRestore(self.local, self.gang, restoration)
        damage: CheckpointCorruptError | None = None
        while True:
            found = None if local is None else local.load(self.claim().begun, point)
            if found is not None:
                self.local_save = found.manifest.location
                return found
            if point is None:
                break
            try:
                return restoration.load(point)
            except CheckpointCorruptError as error:
                damage, point = error, self._fall_back(point, error)
        if self.app.torn is not None:
            raise CheckpointCorruptError(
                f"nothing is left to begin with{f' ({damage})' if damage else ''}, and a part of "
                f"{self.app.torn.source} was loaded already: start again for a fresh run"
            ) from damage
        return None

    def load_entry(self, entry: Entry) -> Loaded:
        with reading(self.store, entry, self.gang) as point:
            return Restoration(self.app, self.gang, self.store).load(point)

    def _fall_back(self, point: ResumePoint, error: CheckpointCorruptError) -> ResumePoint | None:
        if point.root is not None:
            raise CheckpointCorruptError(
                f"the checkpoint to start from, {point.uri('')}, is damaged: {error}"
            ) from error
        reason = str(error)
        before = self.gang.lead(lambda: self._set_aside(point, error))
        if self.gang.leads:
            log.warning(
                "step %d is damaged and set aside (%s); falling back to %s",
                point.step,
                reason,
                "a fresh start" if before is None else f"step {before.step}",
            )
        return before

    def _set_aside(self, point: ResumePoint, error: CheckpointCorruptError) -> ResumePoint | None:
        """On rank 0, who looks for itself: one node's bad memory or mount must not cost all checkpoints, one after the
        other. Raises StorageUnavailableError where it sees no damage."""
        if error.key is None or self._is_damaged(point, error.key, error.block):
            return self.claimed().quarantine(point.location, str(error))
        raise StorageUnavailableError(
            f"{error}. Rank 0 has looked again and finds no damage, so nothing is set aside: look at the node of the "
            "rank that failed, its memory and its way to storage"
        )

    def _is_damaged(self, point: ResumePoint, key: str, block: int) -> bool:
        try:
            manifest = patiently(lambda: self.job.manifest(point))
            file = manifest.file(key.removeprefix(f"{point.location}/"))
            if file is not None:
                read_verified(self.store, key, file, covering(block * BLOCK, 1, file.size))
        except CheckpointCorruptError:
            return True
        return file is None
