"""A lost register made again from what is provably committed: saves with COMMITTED whose every byte is right.

For people, never for the operator: it must run while no attempt does, because a register that is made again knows of no
claim. The epoch rises above every location's, so that whatever was still under way stays fenced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError

from everstep.catalog import manifest as manifests
from everstep.catalog.documents import Catalog, Entry
from everstep.catalog.fields import Count, Text
from everstep.catalog.job import JobCatalog
from everstep.catalog.keys import CHECKPOINTS, COMMITTED, MANIFEST, Location
from everstep.catalog.ledger import entry_of
from everstep.catalog.store import KeyNotFound
from everstep.catalog.verify import verify_save
from everstep.errors import CheckpointCorruptError, InvalidOperationError

MAX_MARK_BYTES = 4096


class Mark(BaseModel):
    """COMMITTED: written after the commit, read here alone."""

    generation: Count
    digest: Text
    seq: Count


@dataclass(frozen=True, slots=True)
class Rejected:
    location: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rebuilt:
    catalog: Catalog
    rejected: list[Rejected]


def survey(job: JobCatalog, on_bytes: Callable[[int], None] = lambda _: None) -> Rebuilt:
    """What a rebuilt register would hold; changes nothing. Reads every byte of every committed save.

    Raises InvalidOperationError where it cannot be a register, such as with too many checkpoints.
    """
    found: list[tuple[Mark, Entry]] = []
    rejected: list[Rejected] = []
    highest = 0
    for folder in job.store.list_folders(CHECKPOINTS):
        try:
            location = Location.parse(folder)
        except ValueError:
            continue
        highest = max(highest, location.epoch)
        try:
            found.append(_examine(job, location, on_bytes))
        except (CheckpointCorruptError, InvalidOperationError) as error:
            rejected.append(Rejected(folder, str(error)))
    found.sort(key=lambda item: item[0].seq)
    generation = max((mark.generation for mark, _ in found), default=0)
    attempt = max((entry.attempt for _, entry in found), default=0)
    entries = _on_one_line([entry for _, entry in found])
    sequence = max((entry.seq for entry in entries), default=0)
    try:
        catalog = Catalog(
            generation=generation, attempt=attempt, epoch=highest + 1, sequence=sequence, checkpoints=entries
        )
    except ValidationError as error:
        raise InvalidOperationError(f"{job.store.uri}: what stands there makes no catalog: {_first(error)}") from error
    return Rebuilt(catalog, rejected)


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _examine(job: JobCatalog, location: Location, on_bytes: Callable[[int], None]) -> tuple[Mark, Entry]:
    try:
        mark = Mark.model_validate_json(job.store.get(location.key(COMMITTED), MAX_MARK_BYTES))
    except KeyNotFound:
        raise CheckpointCorruptError("has no COMMITTED: never committed, or being removed") from None
    except ValidationError as error:
        raise CheckpointCorruptError(f"COMMITTED: {_first(error)}") from error
    try:
        body = job.store.get(location.key(MANIFEST), manifests.MAX_MANIFEST_BYTES)
    except KeyNotFound:
        raise CheckpointCorruptError("has no manifest.json") from None
    manifest = manifests.decode(body, mark.digest)
    if manifest.location != str(location):
        raise CheckpointCorruptError(f"its manifest speaks of {manifest.location}")
    verify_save(job.store, manifest, on_bytes)
    try:
        return mark, entry_of(manifest, body, manifest.written, mark.seq)
    except ValidationError as error:
        raise CheckpointCorruptError(f"manifest.json: {_first(error)}") from error


def _on_one_line(entries: list[Entry]) -> tuple[Entry, ...]:
    """Of two that contradict each other (a later commit of an older step) the earlier commit had been passed over."""
    line: list[Entry] = []
    ceiling: int | None = None
    for entry in reversed(entries):
        if ceiling is None or entry.step < ceiling:
            ceiling = entry.step
            line.append(entry)
        else:
            line.append(entry.model_copy(update={"state": "abandoned", "reason": "passed over before the rebuild"}))
    return tuple(reversed(line))


def rebuild(job: JobCatalog, rebuilt: Rebuilt) -> Catalog:
    """Create the register. Raises InvalidOperationError where one stands, or nothing is left to put into it."""
    if not rebuilt.catalog.checkpoints:
        raise InvalidOperationError(f"{job.store.uri}: no save here is provably committed: nothing to rebuild from")

    def decide(catalog: Catalog | None) -> Catalog:
        if catalog is not None and catalog.checkpoints != rebuilt.catalog.checkpoints:
            raise InvalidOperationError(f"{job.store.uri} has a catalog.json: nothing is rebuilt over it")
        return catalog or rebuilt.catalog

    return job.register.swap(decide)
