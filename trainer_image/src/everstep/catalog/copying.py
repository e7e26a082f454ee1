"""Committed checkpoints taken to another root, byte for byte, where they are a run of their own.

The register comes last, so that a copy which was cut short is no run yet. Locations and manifests stay as they are: the
digest of a copy is the digest of what was committed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from everstep.catalog import manifest as manifests
from everstep.catalog.documents import Catalog, Entry
from everstep.catalog.holding import held
from everstep.catalog.job import JobCatalog
from everstep.catalog.keys import COMMITTED, MANIFEST, Location
from everstep.catalog.manifest import File
from everstep.catalog.rebuild import Mark
from everstep.catalog.store import KeyNotFound, Store
from everstep.catalog.verify import CHUNK, complaint, wrong_blocks
from everstep.errors import CheckpointCorruptError, InvalidOperationError


def copy(
    job: JobCatalog,
    entries: Sequence[Entry],
    to: Store,
    on_bytes: Callable[[int], None] = lambda _: None,
    at_once: int = 8,
) -> Catalog:
    """Copy these entries, oldest commit first, into the empty root `to`; returns its register. They are held meanwhile.

    In memory is one file at a time. Raises InvalidOperationError where something stands there already,
    CheckpointCorruptError where a byte is not the one that was committed: then there is no run.
    """
    if next(iter(to.list("")), None) is not None:
        raise InvalidOperationError(f"{to.uri} is not empty: nothing is overwritten; name a new place")
    copied = tuple(entry.model_copy(update={"state": "live", "reason": None}) for entry in entries)
    catalog = Catalog(
        attempt=max(entry.attempt for entry in copied),
        epoch=max(Location.parse(entry.location).epoch for entry in copied) + 1,
        sequence=max(entry.seq for entry in copied),
        checkpoints=copied,
    )
    with ExitStack() as holds, ThreadPoolExecutor(at_once) as pool:
        for entry in entries:
            holds.enter_context(held(job, entry, "copy"))
        for entry in copied:
            _copy(job, entry, to, pool, on_bytes)

    def decide(found: Catalog | None) -> Catalog:
        if found is not None and found.checkpoints != copied:
            raise InvalidOperationError(f"{to.uri} has become a run meanwhile: nothing is overwritten")
        return found or catalog

    return JobCatalog(to).register.swap(decide)


def _copy(job: JobCatalog, entry: Entry, to: Store, pool: ThreadPoolExecutor, on_bytes: Callable[[int], None]) -> None:
    location = Location.parse(entry.location)
    manifest = job.manifest(entry)
    for file in manifest.files:
        to.put(location.key(file.name), _read(job.store, location, file, pool, on_bytes), file.blocks)
    body = job.store.get(location.key(MANIFEST), manifests.MAX_MANIFEST_BYTES)
    manifests.decode(body, entry.digest)
    to.put(location.key(MANIFEST), body)
    mark = Mark(generation=1, digest=entry.digest, seq=entry.seq)
    to.put(location.key(COMMITTED), mark.model_dump_json().encode())


def _read(
    store: Store, location: Location, file: File, pool: ThreadPoolExecutor, on_bytes: Callable[[int], None]
) -> bytearray:
    """A whole file, verified. Raises CheckpointCorruptError."""
    whole = bytearray(file.size)
    view = memoryview(whole)

    def fill(start: int) -> None:
        end = min(start + CHUNK, file.size)
        try:
            count = store.read_into(location.key(file.name), start, view[start:end])
        except KeyNotFound as error:
            raise CheckpointCorruptError(f"{store.uri}/{location.key(file.name)} is missing") from error
        wrong = wrong_blocks(file, start, end, view[start : start + count])
        if wrong:
            raise CheckpointCorruptError(complaint(f"{store.uri}/{location}", file, wrong[0]))
        on_bytes(count)

    for _ in pool.map(fill, range(0, file.size, CHUNK)):
        pass
    return whole
