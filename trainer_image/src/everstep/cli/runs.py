"""Which runs stand below a place, and what each of their locations is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from everstep.catalog import JobCatalog, Retention, S3Access, Store, open_store
from everstep.catalog.documents import Catalog, Entry
from everstep.catalog.keys import CHECKPOINTS, Location
from everstep.catalog.retention import kept
from everstep.catalog.transitions import sweepable
from everstep.errors import CheckpointNotFoundError

DEPTH = 4
"""Folders searched for runs: uri/namespace/name and a prefix or two."""


@dataclass(frozen=True, slots=True)
class Row:
    """One location of a run. Bytes and files are None where only a listing could tell."""

    location: str
    step: int
    status: str
    bytes: int | None
    files: int | None
    created: datetime | None
    score: float | None
    kept_because: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Run:
    uri: str
    catalog: Catalog
    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        latest = self.catalog.latest()
        return {
            "uri": self.uri,
            "attempt": self.catalog.attempt,
            "epoch": self.catalog.epoch,
            "latest": None if latest is None else {"step": latest.step, "location": latest.location},
            "bytes": self.total,
            "checkpoints": [
                {
                    "step": row.step,
                    "location": row.location,
                    "status": row.status,
                    "bytes": row.bytes,
                    "files": row.files,
                    "created": None if row.created is None else row.created.isoformat(),
                    "score": row.score,
                    "kept": list(row.kept_because),
                }
                for row in self.rows
            ],
        }

    @property
    def total(self) -> int:
        return sum(row.bytes or 0 for row in self.rows)


def find_runs(uri: str, access: S3Access | None, partial: bool = False) -> list[Run]:
    """Every run at or below `uri`, by its catalog. Raises CheckpointNotFoundError where there is none."""
    runs: list[Run] = []
    _search(uri.rstrip("/"), access, partial, DEPTH, runs)
    if not runs:
        raise CheckpointNotFoundError(f"no catalog.json at or up to {DEPTH} folders below {uri}")
    return runs


def _search(uri: str, access: S3Access | None, partial: bool, depth: int, runs: list[Run]) -> None:
    store = open_store(uri, access)
    job = JobCatalog(store)
    catalog = job.read()
    if catalog is not None:
        runs.append(Run(uri, catalog, tuple(rows(catalog, store if partial else None))))
        return
    if depth:
        for folder in store.list_folders(""):
            _search(f"{uri}/{folder}", access, partial, depth - 1, runs)


def rows(catalog: Catalog, store: Store | None) -> list[Row]:
    """What the catalog names, oldest first; with a store also what it does not name (one listing)."""
    unnamed = _unnamed(catalog, store) if store is not None else []
    reasons = kept(catalog, Retention(), datetime.now(UTC))
    for reason in reasons.values():
        if "no policy" in reason:
            reason.remove("no policy")
    found = [_row(entry, reasons.get(entry.location, [])) for entry in catalog.checkpoints]
    found += [Row(r.location, r.step, "removing", r.bytes, None, None, None, ()) for r in catalog.removing]
    return sorted(found + unnamed, key=lambda row: (row.step, row.location))


def _row(entry: Entry, reasons: list[str]) -> Row:
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
