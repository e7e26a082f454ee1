"""Sets of weights for consumers: a register of their own, `weights.json`, in the form of the job's.

Who may publish is decided by the job's own register. Its claim is looked at inside each swap of this one, so that a
worker group which was fenced publishes nothing from the moment that its successor has taken this register.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import datetime

from everstep.catalog import manifest as manifests
from everstep.catalog import transitions
from everstep.catalog.documents import RESERVE, Catalog, Entry, Owner
from everstep.catalog.keys import WEIGHTS, WEIGHTS_REGISTER
from everstep.catalog.ledger import Ledger, utc_now
from everstep.catalog.register import Register
from everstep.catalog.retention import Retention, expendable
from everstep.catalog.store import Store
from everstep.errors import CatalogMissingError, CheckpointNotFoundError, OwnerConflictError


class WeightSets(Ledger):
    """The weights that a job has published. The newest is the live entry with the highest seq."""

    def __init__(self, store: Store, register: Register | None = None, clock: Callable[[], datetime] = utc_now) -> None:
        super().__init__(store, register or Register(store, WEIGHTS_REGISTER), WEIGHTS, clock)
        self._job = Register(store)

    def take(self, claim_id: str) -> None:
        """Take this register for the worker group that holds the job's claim; call it before training begins.

        Raises FencedError.
        """

        def decide(catalog: Catalog | None) -> Catalog:
            job = self._claimed(claim_id)
            assert job.claim is not None
            return transitions.take(catalog, job, job.claim)

        self.register.swap(decide)

    def publish(self, claim_id: str, manifest: manifests.Manifest, keep_last: int) -> Entry:
        """Make a set whose files are all stored the newest one, and retire what is older than `keep_last` sets.

        Raises FencedError where another worker group has taken over: then nothing is published.
        """
        draft = self.store_manifest(manifest)

        def decide(catalog: Catalog | None) -> Catalog:
            self._claimed(claim_id)
            published = transitions.publish(catalog, claim_id, draft)
            now = self._clock()
            leaving = {entry.location for entry in expendable(published, Retention(last=keep_last), now)}
            return transitions.retire(published, leaving, now)

        entry = self.register.swap(decide, RESERVE).find(manifest.location)
        if entry is None:  # pragma: no cover - the swap wrote it
            raise CheckpointNotFoundError(manifest.location)
        return entry

    def delete_everything(self, owner: Owner) -> None:
        """The end of a job whose checkpoints go with it; another incarnation's weights stay."""
        with contextlib.suppress(CatalogMissingError, OwnerConflictError):
            self.dissolve(owner)
            now = self.read()
            if now is not None and now.owner is not None and now.owner.uid == owner.uid and not now.checkpoints:
                self.store.delete([WEIGHTS_REGISTER])

    def _claimed(self, claim_id: str) -> Catalog:
        snapshot = self._job.read()
        return transitions.require_claim(snapshot.catalog if snapshot else None, claim_id)
