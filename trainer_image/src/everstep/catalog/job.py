"""A job's checkpoints in storage: the transitions of the register joined with the objects that they speak of.

The operator, the trainer, the command line and the tests all go through here; nothing else writes below a job's root
but the shards themselves, heartbeats and event files.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial

from everstep.catalog import manifest as manifests
from everstep.catalog import transitions
from everstep.catalog.documents import RESERVE, Catalog, Entry, Owner
from everstep.catalog.keys import CATALOG, CHECKPOINTS, COMMITTED, MANIFEST, PROGRESS, Location
from everstep.catalog.ledger import MOST_LISTED, Ledger, utc_now
from everstep.catalog.register import Register, Snapshot
from everstep.catalog.retention import Retention, expendable, safeguarded, unscored
from everstep.catalog.store import KeyNotFound, Store
from everstep.catalog.store.threads import begin
from everstep.catalog.transitions import AUTO, Resume, ResumePoint, resume_point
from everstep.catalog.weights import WeightSets
from everstep.errors import (
    CatalogMissingError,
    CheckpointCorruptError,
    CheckpointNotFoundError,
    FencedError,
    InvalidOperationError,
    OwnerConflictError,
    StorageError,
)

_DIGEST_PIECE = 8 << 20


class JobCatalog(Ledger):
    """A job's checkpoints, and who may commit more."""

    def __init__(self, store: Store, register: Register | None = None, clock: Callable[[], datetime] = utc_now) -> None:
        super().__init__(store, register or Register(store), CHECKPOINTS, clock)

    def check_manifest(self, point: Entry | ResumePoint) -> None:
        """That the committed manifest stands there, without holding it in memory: who asks may not trust its author.

        Raises CheckpointCorruptError.
        """
        key = Location.parse(point.location).key(MANIFEST)
        found = hashlib.sha256()
        try:
            for start in range(0, manifests.MAX_MANIFEST_BYTES, _DIGEST_PIECE):
                piece = self.store.get_range(key, start, _DIGEST_PIECE)
                found.update(piece)
                if len(piece) < _DIGEST_PIECE:
                    break
        except KeyNotFound as error:
            raise CheckpointCorruptError(f"{self.store.uri}/{key} is missing") from error
        if found.hexdigest() != point.digest:
            raise CheckpointCorruptError(f"{self.store.uri}/{key} has not the SHA-256 that was committed")

    def has_checkpoints(self) -> bool:
        return next(self.store.list(CHECKPOINTS), None) is not None

    # the operator's side

    def fence(
        self,
        owner: Owner,
        at_least: int = 1,
        resume: Resume = AUTO,
        adopt: bool = False,
        expect_existing: bool = False,
        expected: int | None = None,
    ) -> Catalog:
        """Begin an attempt; its resume point is `resume_point` of the returned document and of no other.

        `resume` counts only in the first fence of the owner's uid. Creates the register in an empty root. `expected`:
        the owner's attempt that this one is to follow, 0 for none; None: whatever stands there.

        Raises FencedError where another attempt has begun since, CatalogMissingError where the register is gone though
        checkpoints stand there or are known of (`expect_existing`; then an empty one is no register either),
        OwnerConflictError where it is another cluster's or a later incarnation's.
        """
        fence_id = secrets.token_hex(16)

        def decide(catalog: Catalog | None) -> Catalog:
            if catalog is None or (expect_existing and catalog.sequence == 0):
                catalog = self._created(expect_existing)
            theirs = catalog.owner is not None and catalog.owner.uid == owner.uid and catalog.fence != fence_id
            if expected is not None and theirs and catalog.attempt != expected:
                raise FencedError(f"attempt {catalog.attempt} has begun since attempt {expected} was looked at")
            return transitions.fence(catalog, owner, fence_id, at_least, resume, adopt)

        return self.register.swap(decide)

    def _created(self, expect_existing: bool) -> Catalog:
        if expect_existing or self.has_checkpoints():
            raise CatalogMissingError(
                f"{self.store.uri}/{self.register.key} is gone although checkpoints were committed here: "
                f"restore it, or suspend the job and run `everstep rebuild {self.store.uri}`"
            )
        return Catalog()

    def retire(self, policy: Retention, owner: Owner | None = None) -> Catalog:
        """Move what nothing keeps into the removal intents. The policy is applied inside each swap, and recorded.

        With `owner`, raises OwnerConflictError where the root is another's by now: then another's policy counts.
        """

        def decide(catalog: Catalog | None) -> Catalog:
            catalog = self._present(catalog)
            if owner is not None and (catalog.owner is None or catalog.owner.uid != owner.uid):
                raise OwnerConflictError(
                    f"the checkpoints of {self.store.uri} belong to {catalog.owner}, not to {owner}"
                )
            now = self._clock()
            going = [] if unscored(catalog, policy) else expendable(catalog, policy, now)
            leaving = {entry.location for entry in going}
            if catalog.retention != policy:
                catalog = catalog.model_copy(update={"retention": policy})
            return transitions.retire(catalog, leaving, now)

        return self.register.swap(decide)

    def prune(self, locations: Collection[str]) -> Catalog:
        """Remove these entries at a user's word, live or not; their keys go with `finish_removals`.

        Raises InvalidOperationError for one that safety, a pin or a hold keeps, CheckpointNotFoundError for one that
        is not there.
        """

        def decide(catalog: Catalog | None) -> Catalog:
            catalog = self._present(catalog)
            now = self._clock()
            gone = {removal.location for removal in catalog.removing}
            safe = safeguarded(catalog, now)
            for location in locations:
                entry = catalog.find(location)
                if entry is None and location not in gone:
                    raise CheckpointNotFoundError(f"{location} is not in the catalog")
                if entry is not None and location in safe:
                    raise InvalidOperationError(f"step {entry.step} ({location}) stays: {', '.join(safe[location])}")
            return transitions.retire(catalog, locations, now)

        return self.register.swap(decide)

    def delete_everything(self, owner: Owner) -> None:
        """The end of a job whose checkpoints go with it: end every claim, remove what the register names and what was
        never committed, the register last: after a crash the root is still known as the job's.

        Only what a document of this very incarnation named is deleted, so that a call which hangs and comes back when
        the name is in use again touches none of the new one's saves. Raises CatalogMissingError, OwnerConflictError.
        """
        self.dissolve(owner)
        WeightSets(self.store).delete_everything(owner)  # nobody can publish any more: the claim is gone
        self.store.delete([info.key for info in itertools.islice(self.store.list(PROGRESS), MOST_LISTED)])
        now = self.read()
        if now is not None and now.owner is not None and now.owner.uid == owner.uid and not now.checkpoints:
            self.store.delete([CATALOG])  # unconditional: few stores know a conditional delete

    def pin(self, location: str, pinned: bool = True) -> Catalog:
        return self.register.swap(lambda catalog: transitions.pin(self._present(catalog), location, pinned))

    def hold(self, location: str, by: str, until: datetime) -> Catalog:
        """Keep an entry until a time. Raises CheckpointNotFoundError where it is not live."""

        def decide(catalog: Catalog | None) -> Catalog:
            return transitions.hold(self._present(catalog), location, by, until, self._clock())

        return self.register.swap(decide, RESERVE)

    def release(self, location: str, by: str) -> Catalog:
        return self.register.swap(lambda catalog: transitions.release(self._present(catalog), location, by))

    # the trainer's side

    def claim(
        self,
        attempt: int | None = None,
        uid: str | None = None,
        resume: Resume = AUTO,
        local: bool = False,
        known: Snapshot | None = None,
    ) -> Claimed:
        """Take the right to commit for one worker group. `local`: it has a local tier, and calls `Claimed.begin`;
        `known`: see `Register.swap`.

        Raises FencedError for an older attempt or incarnation, and where another group claims while this one still
        waits for its answer: of two that race, the one that began earlier never displaces the other.
        """
        claim_id = secrets.token_hex(16)
        seen: list[int] = []

        def decide(catalog: Catalog | None) -> Catalog:
            if catalog is None:
                if attempt is not None:
                    raise CatalogMissingError(
                        f"{self.store.uri} has no catalog.json: the operator has not fenced this attempt"
                    )
                catalog = self._created(expect_existing=False)
            seen.append(catalog.epoch)
            if catalog.epoch != seen[0] and (catalog.claim is None or catalog.claim.id != claim_id):
                raise FencedError("another worker group has taken over while this one was claiming")
            return transitions.claim(catalog, claim_id, self._clock(), attempt, uid, resume, local)

        return Claimed(self, claim_id, self.register.swap(decide, known=known))


class Claimed:
    """The right of one worker group to commit. Only rank 0 holds one."""

    def __init__(self, job: JobCatalog, claim_id: str, catalog: Catalog) -> None:
        if catalog.claim is None:  # pragma: no cover - the swap wrote it
            raise AssertionError("a claim without a claim")
        self.job = job
        self.id = claim_id
        self.epoch = catalog.claim.epoch
        self.attempt = catalog.claim.attempt
        self.catalog = catalog
        self.resume: ResumePoint | None = resume_point(catalog)

    def new_location(self, step: int) -> Location:
        try:
            return Location.new(step, self.epoch)
        except ValueError as error:
            raise InvalidOperationError(f"step {step}: {error}") from error

    def commit(
        self,
        manifest: manifests.Manifest,
        known: Snapshot | None = None,
        stood: Callable[[Entry], None] | None = None,
    ) -> Entry:
        """Write the manifest, then swap the entry in: that swap is the commit. Every shard must be stored by now.

        `known`: see `Register.swap`. `stood` is called once it is committed, while it is being marked for `rebuild`.

        Raises FencedError where another worker group has taken over, and then nothing is committed.
        """
        draft = self.job.store_manifest(manifest)
        catalog = self.job.register.swap(lambda current: transitions.commit(current, self.id, draft), RESERVE, known)
        entry = catalog.find(manifest.location)
        if entry is None:  # pragma: no cover - the swap wrote it
            raise CheckpointNotFoundError(manifest.location)
        mark = partial(self._mark, Location.parse(entry.location), catalog, entry)
        if stood is None:
            mark()
            return entry
        try:
            marked = begin(mark, "everstep-mark").result
        except RuntimeError:  # there is no room for a thread
            marked = mark
        try:
            stood(entry)
        finally:
            marked()
        return entry

    def _mark(self, location: Location, catalog: Catalog, entry: Entry) -> None:
        """For `rebuild` alone: its absence costs nothing while the register stands."""
        mark = {"generation": catalog.generation, "digest": entry.digest, "seq": entry.seq}
        try:
            self.job.store.put(location.key(COMMITTED), json.dumps(mark).encode())
        except StorageError:
            return

    def begin(self, local: str | None) -> None:
        """Before the first step of a group with a local tier: tell that it begins from this local save, or (None) from
        what its claim names. Raises FencedError."""
        self.job.register.swap(lambda current: transitions.begin(current, self.id, local))

    def quarantine(self, location: str, reason: str) -> ResumePoint | None:
        """Set a damaged entry aside; returns where to resume from instead."""
        catalog = self.job.register.swap(lambda current: transitions.quarantine(current, self.id, location, reason))
        return resume_point(catalog)

    def check(self) -> None:
        """Raises FencedError where this worker group may not commit any more."""
        transitions.require_claim(self.job.read(), self.id)
