"""Saves that one register names in one folder: what is read of them, and how they are removed."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from everstep.catalog import manifest as manifests
from everstep.catalog import transitions
from everstep.catalog.documents import Catalog, Entry, Owner
from everstep.catalog.keys import COMMITTED, MANIFEST, Location
from everstep.catalog.register import Register, Snapshot
from everstep.catalog.store import KeyNotFound, Store, Unchanged
from everstep.catalog.transitions import ResumePoint
from everstep.errors import CatalogMissingError, CheckpointCorruptError

UPLOAD_GRACE = timedelta(hours=1)
"""An unfinished upload younger than this may belong to a save under way, where its location does not tell."""
BATCH = 1000
MOST_LISTED = 100_000
"""Folders of a root, or keys of a location, that one pass looks at: anybody may have filled a bucket with millions."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def entry_of(manifest: manifests.Manifest, body: bytes, committed: datetime, seq: int = 0) -> Entry:
    """What a register says of the save whose manifest has these bytes. Raises ValidationError."""
    return Entry(
        seq=seq,
        step=manifest.step,
        epoch=manifest.epoch,
        attempt=manifest.attempt,
        location=manifest.location,
        digest=manifests.digest(body),
        bytes=manifest.bytes + len(body),
        files=len(manifest.files) + 1,
        committed=committed,
        score=manifest.score,
        score_of=manifest.score_of,
    )


class Ledger:
    """Synchronous and stateless: every method reads the register it decides on. `store` is the job's root."""

    def __init__(self, store: Store, register: Register, folder: str, clock: Callable[[], datetime]) -> None:
        self.store = store
        self.register = register
        self.folder = folder
        self._clock = clock

    def read(self) -> Catalog | None:
        snapshot = self.register.read()
        return snapshot.catalog if snapshot else None

    def poll(self, known: str | None = None) -> Snapshot | Unchanged | None:
        return self.register.read() if known is None else self.register.poll(known)

    def require(self) -> Catalog:
        return self._present(self.read())

    def _present(self, catalog: Catalog | None) -> Catalog:
        if catalog is None:
            raise CatalogMissingError(f"{self.store.uri} has no {self.register.key}")
        return catalog

    def store_manifest(self, manifest: manifests.Manifest) -> Entry:
        """Write a save's manifest; returns the entry that a swap is to put in. Nothing names the save yet."""
        body = manifests.encode(manifest)
        self.store.put(Location.parse(manifest.location).key(MANIFEST), body)
        return entry_of(manifest, body, self._clock())

    def manifest(self, point: Entry | ResumePoint) -> manifests.Manifest:
        """The manifest of a committed entry, checked against the digest in the register."""
        key = Location.parse(point.location).key(MANIFEST)
        try:
            body = self.store.get(key, manifests.MAX_MANIFEST_BYTES)
        except KeyNotFound as error:
            raise CheckpointCorruptError(f"{self.store.uri}/{key} is missing") from error
        return manifests.decode(body, point.digest)

    def finish_removals(self, most: int = 100) -> int:
        """Delete the keys of up to `most` intents, oldest first, then drop those intents. Returns how many are done.

        One with very many keys takes several passes: its intent stays until the last.
        """
        catalog = self.read()  # a generation read back, not one that a swap of our own promised
        if catalog is None or not catalog.removing:
            return 0
        done = set()
        for removal in catalog.removing[:most]:
            deleted = self._delete(Location.parse(removal.location))
            if deleted < MOST_LISTED:
                done.add(removal.location)
        self.register.swap(lambda current: transitions.forget(self._present(current), done))
        return len(done)

    def sweep(self) -> list[str]:
        """Delete what no document names and no claim can commit any more: failed and fenced saves. Returns
        locations.
        """
        swept: list[str] = []
        folders = itertools.islice(self.store.list_folders(self.folder), MOST_LISTED)
        while listed := list(itertools.islice(folders, BATCH)):
            catalog = self.read()  # after the listing, each time: see `sweepable`
            if catalog is None:
                return swept
            for folder in listed:
                try:
                    location = Location.parse(folder)
                except ValueError:
                    continue
                if transitions.sweepable(catalog, location) and self._delete(location):
                    swept.append(folder)
        self._abort_uploads()
        return swept

    def _abort_uploads(self) -> None:
        """Those of saves that can never be committed at once, others when they are old."""
        catalog = self.read()

        def dead(key: str) -> bool:
            try:
                location = Location.parse("/".join(key.split("/")[:2]))
            except ValueError:
                return False
            return catalog is not None and transitions.sweepable(catalog, location)

        self.store.abort_uploads(self.folder, self._clock() - UPLOAD_GRACE, dead)

    def dissolve(self, owner: Owner) -> None:
        """End every claim, remove every entry, then what was never committed. Raises OwnerConflictError unless the
        register is this very incarnation's, CatalogMissingError.
        """
        fence_id = secrets.token_hex(16)

        def decide(catalog: Catalog | None) -> Catalog:
            return transitions.dissolve(self._present(catalog), owner, fence_id, self._clock())

        while self.register.swap(decide).removing:
            self.finish_removals()
        self.sweep()

    def _delete(self, location: Location) -> int:
        self.store.delete([location.key(COMMITTED)])  # first: `rebuild` must never revive half a checkpoint
        prefix = f"{location}/"
        names = (info.key for info in self.store.list(prefix) if location.holds(info.key.removeprefix(prefix)))
        keys = list(itertools.islice(names, MOST_LISTED))
        self.store.delete(keys)
        return len(keys)
