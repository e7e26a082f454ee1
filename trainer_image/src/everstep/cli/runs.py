"""Which runs stand below a place, and what each of their checkpoints is: by their registers, not by listings."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any

from everstep.catalog import JobCatalog, Retention, S3Access, Store, open_store
from everstep.catalog.documents import Catalog, Entry
from everstep.catalog.keys import CHECKPOINTS, Location
from everstep.catalog.retention import kept
from everstep.catalog.store.posix import PosixStore
from everstep.catalog.transitions import sweepable
from everstep.cli.output import complain
from everstep.errors import (
    CatalogUnreadableError,
    CheckpointNotFoundError,
    InvalidOperationError,
    StorageRefusedError,
)

DEPTH = 4
"""Folders searched for runs: uri/namespace/name and a prefix or two."""
MOST_FOLDERS = 20_000
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One checkpoint of a run. Files are None where only a listing could tell."""

    location: str
    step: int
    status: str
    bytes: int
    files: int | None
    created: datetime | None
    score: float | None
    kept_because: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "location": self.location,
            "status": self.status,
            "bytes": self.bytes,
            "files": self.files,
            "created": None if self.created is None else self.created.isoformat(),
            "score": self.score,
            "kept": list(self.kept_because),
        }


@dataclass(frozen=True, slots=True)
class Run:
    """`problem`: why its register could not be read; then there are no rows."""

    uri: str
    catalog: Catalog
    rows: tuple[Row, ...]
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        latest = self.catalog.latest()
        return {
            "uri": self.uri,
            "problem": self.problem,
            "attempt": self.catalog.attempt,
            "epoch": self.catalog.epoch,
            "latest": None if latest is None else {"step": latest.step, "location": latest.location},
            "bytes": self.total,
            "checkpoints": [row.as_dict() for row in self.rows],
        }

    @property
    def total(self) -> int:
        return sum(row.bytes for row in self.rows)


def find_runs(uri: str, access: S3Access | None, listed: bool = False) -> list[Run]:
    """Every run at or below `uri`. `listed`: also list each run, for what its register does not name.

    A register or folder that cannot be read hides no other run. Raises CheckpointNotFoundError where there is no run.
    """
    runs: list[Run] = []
    places = [uri.rstrip("/") or uri]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in range(DEPTH + 1):
            below: list[str] = []
            look = partial(_visit, access=access, listed=listed, given=uri)
            for found in pool.map(look, places):
                if isinstance(found, Run):
                    runs.append(found)
                else:
                    below += found
            places = below
            if len(places) > MOST_FOLDERS:
                raise InvalidOperationError(
                    f"{uri} has more than {MOST_FOLDERS} folders: name a place nearer to the runs"
                )
    if not runs:
        store = open_store(uri, access)
        if isinstance(store, PosixStore) and not store.root.is_dir():
            raise CheckpointNotFoundError(f"there is no folder {store.uri}")
        raise CheckpointNotFoundError(f"no catalog.json at or up to {DEPTH} folders below {store.uri}")
    return sorted(runs, key=lambda run: run.uri)


def _visit(uri: str, access: S3Access | None, listed: bool, given: str) -> Run | list[str]:
    """The run that stands here, else the folders to look into. What may not be read is left out, but for `given`."""
    try:
        return _look(uri, access, listed)
    except StorageRefusedError as error:
        if uri == (given.rstrip("/") or given):
            raise
        complain(f"left out: {error}")
        return []


def _look(uri: str, access: S3Access | None, listed: bool) -> Run | list[str]:
    store = open_store(uri, access)
    try:
        catalog = JobCatalog(store).read()
    except CatalogUnreadableError as error:
        return Run(store.uri, Catalog(), (), str(error))
    if catalog is not None:
        return Run(store.uri, catalog, tuple(rows(catalog, store if listed else None)))
    folders = list(islice(store.list_folders(""), MOST_FOLDERS + 1))
    if CHECKPOINTS.rstrip("/") in folders and next(store.list(CHECKPOINTS), None) is not None:
        return Run(store.uri, Catalog(), (), "catalog.json is missing: put it back, or use `everstep rebuild`")
    return [f"{uri}/{folder}" for folder in folders]


def rows(catalog: Catalog, store: Store | None) -> list[Row]:
    """What the catalog names, oldest first; with a store also what it does not name (one listing)."""
    reasons = kept(catalog, catalog.retention or Retention(), datetime.now(UTC))
    found = [_row(entry, reasons.get(entry.location, [])) for entry in catalog.checkpoints]
    found += [Row(r.location, r.step, "removing", r.bytes, None, None, None, ()) for r in catalog.removing]
    found += () if store is None else _unnamed(catalog, store)
    return sorted(found, key=lambda row: (row.step, row.location))


def _row(entry: Entry, reasons: Iterable[str]) -> Row:
    status = "complete" if entry.state == "live" else entry.state
    why = (*reasons, entry.reason) if entry.reason else tuple(reasons)
    return Row(entry.location, entry.step, status, entry.bytes, entry.files, entry.committed, entry.score, why)


def _unnamed(catalog: Catalog, store: Store) -> list[Row]:
    named = {entry.location for entry in catalog.checkpoints} | {removal.location for removal in catalog.removing}
    found = []
    for folder in store.list_folders(CHECKPOINTS):
        if folder in named:
            continue
        try:
            location = Location.parse(folder)
        except ValueError:
            continue
        objects = list(store.list(f"{folder}/"))
        if objects:
            why = "will be swept" if sweepable(catalog, location) else "being written"
            size = sum(info.size for info in objects)
            found.append(Row(folder, location.step, "partial", size, len(objects), objects[0].modified, None, (why,)))
    return found
