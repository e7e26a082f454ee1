"""One restore, on all ranks: what is committed at a resume point, verified byte for byte, into the live objects."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.distributed.checkpoint._nested_dict import flatten_state_dict

from everstep.catalog import Entry, JobCatalog, Location, Manifest, ResumePoint, Store, open_store
from everstep.catalog.holding import held
from everstep.catalog.keys import METADATA
from everstep.catalog.progress import LoadTimes
from everstep.catalog.store.threads import begin
from everstep.catalog.sums import block_sums
from everstep.checkpoint import collecting
from everstep.checkpoint.blocks import patiently
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.restoring.headstart import STEPS, few_steps, front
from everstep.checkpoint.restoring.loading import load_state
from everstep.checkpoint.restoring.matching import Configuration, check_tensors, mesh_of
from everstep.checkpoint.restoring.reader import SavedShards
from everstep.checkpoint.restoring.sources import point_of
from everstep.checkpoint.state import optimizers, plain
from everstep.checkpoint.state.application import (
    COMMON,
    RANK,
    Application,
    Restored,
    apply,
    check_fits,
    model_state,
    template,
)
from everstep.errors import CheckpointCorruptError, CheckpointNotFoundError, CheckpointUnreadableError

log = logging.getLogger("everstep")

EARLY = 4 << 20
"""Bytes of `.metadata` that are asked for before its size is known."""


@dataclass(frozen=True)
class Loaded:
    manifest: Manifest
    restored: Restored
    times: LoadTimes


class Restoration:
    def __init__(self, app: Application, gang: Gang, store: Store) -> None:
        self.app = app
        self.gang = gang
        self.store = store

    def load(self, point: ResumePoint) -> Loaded:
        """Collective. Raises CheckpointCorruptError (bytes fail their digest twice), CheckpointUnreadableError (they do
        not, and still make no sense), ArchitectureMismatchError."""
        started = time.monotonic()
        root = point.root
        store = self.store if root is None else self.gang.everywhere(lambda: open_store(root))
        saved = open_saved(store, point, self.gang, self._begin_ahead)
        try:
            return self.load_saved(saved, started)
        finally:
            saved.end_ahead()

    def _begin_ahead(self, saved: SavedShards) -> None:
        manifest, now = saved.manifest, (self.gang.world_size, mesh_of(self.app.model))
        alone = has_own_file((manifest.world_size, manifest.mesh), now)
        steps = STEPS if alone else few_steps(manifest.bytes // self.gang.world_size)
        name = front(saved.numbers, manifest.world_size, self.gang.rank, self.gang.world_size)
        if name is not None and steps:
            saved.begin_ahead(name, steps)

    def load_saved(self, saved: SavedShards, started: float) -> Loaded:
        """`load` of what was opened already. `started`: a monotonic time."""
        with told_with_versions(saved.manifest):
            return self._load(saved, started)

    def _load(self, saved: SavedShards, started: float) -> Loaded:
        own_part = begin(lambda: self._own(saved), "everstep-own")  # beside rank 0: each would be a round trip
        common = self.gang.lead(lambda: _common(saved))
        own = self.gang.everywhere(own_part.result)
        state = self.gang.everywhere(lambda: self._template(saved, common, own))
        self._check_groups(saved)
        step = saved.manifest.step
        again = saved.store.retries
        with self.app.filling(f"step {step} ({saved.location})"):
            fetched = load_state(state, saved, self.gang)
            restored = self.gang.everywhere(lambda: apply(self.app, state, common, own, step, self.gang))
        total, retries = self.gang.start_sum([fetched, saved.store.retries - again]).wait()
        seconds = time.monotonic() - started
        return Loaded(saved.manifest, restored, LoadTimes(step=step, seconds=seconds, bytes=total, retries=retries))

    def _own(self, saved: SavedShards) -> Any:
        """What this rank had of its own, if there were as many ranks: to others it is of no use."""
        if saved.manifest.world_size != self.gang.world_size:
            return None
        own = saved.read_tensor(f"{RANK}{self.gang.rank}")
        return None if own is None else plain.unpack(own)

    @collecting.paused()
    def _template(self, saved: SavedShards, common: Any, own: Any) -> dict[str, Any]:
        """Everything that metadata tell to be wrong with the checkpoint for this job is found here."""
        configurations = (
            Configuration.of(saved.manifest),
            Configuration(self.gang.world_size, mesh_of(self.app.model), self.app.config_digest),
        )
        model = {} if self.app.model is None else model_state(self.app.model)
        if self.app.model is not None:
            flat = flatten_state_dict({"model": model})[0]
            check_tensors(flat, saved.metadata, *configurations, whole="model.")
        check_fits(self.app, common, own, self.gang)
        state = template(self.app, saved.metadata, common, own, model)
        self._tell_left_out(saved, model)
        check_tensors(flatten_state_dict(state)[0], saved.metadata, *configurations)
        return state

    def _tell_left_out(self, saved: SavedShards, model: Iterable[str]) -> None:
        if self.app.model is None or not self.app.optimizers or not self.gang.leads:
            return
        names = optimizers.left_out(self.app.model, model, self.app.optimizers, saved.metadata)
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            log.warning("the state of %s%s is left in the checkpoint: no optimizer has the parameter", names[0], more)

    def _check_groups(self, saved: SavedShards) -> None:
        """Collective. Who was in one group of an optimizer is read before any tensor is touched."""
        app, members = self.app, optimizers.stored_members(saved.metadata)
        if app.model is None or not app.optimizers or len(members) < 2:
            return
        model = app.model
        load_state({"optimizer": {"param_groups": members}}, saved, self.gang, last=False)
        self.gang.everywhere(lambda: optimizers.check_groups(model, app.optimizers, members))


def has_own_file(saved: tuple[int, Mapping[str, int]], now: tuple[int, Mapping[str, int]]) -> bool:
    """Whether each rank most likely needs all that the rank of its number has written, and no other does: it is alone,
    or one of as many, sharded in the same way. Both are a number of ranks and their mesh."""
    ranks, mesh = now
    return ranks == 1 or (saved == now and list(mesh.values()) == [ranks])


def open_saved(
    store: Store, point: ResumePoint, gang: Gang, known: Callable[[SavedShards], None] = lambda _: None
) -> SavedShards:
    """Collective. Rank 0 reads the manifest and `.metadata`, verified, for all. `known` is called with what has its
    manifest, on each rank."""
    manifest, body = gang.lead(lambda: _read_both(store, point))
    saved = SavedShards(store, manifest)
    try:
        known(saved)
        with told_with_versions(manifest):
            gang.everywhere(lambda: saved.use_metadata(body))
    except BaseException:
        saved.end_ahead()
        raise
    return saved


def _read_both(store: Store, point: ResumePoint) -> tuple[Manifest, bytes]:
    """At once, for each would be a round trip: what `.metadata` must be is known when both are there."""
    memory = memoryview(bytearray(EARLY))
    early = begin(lambda: store.read_into(Location.parse(point.location).key(METADATA), 0, memory), "everstep-metadata")
    manifest = committed_manifest(JobCatalog(store), point)
    saved = SavedShards(store, manifest)
    file = saved.file(METADATA)
    with contextlib.suppress(Exception):  # it is asked for again, with more patience
        body = memory[: early.result()]
        if len(body) == file.size and tuple(block_sums(body)) == file.blocks:
            return manifest, bytes(body)
    return manifest, saved.read_metadata()


@contextlib.contextmanager
def told_with_versions(manifest: Manifest) -> Iterator[None]:
    """Who cannot read what is intact wants to know what wrote it. To set it aside instead would cost its step, and in
    the end all steps."""
    try:
        yield
    except CheckpointUnreadableError as error:
        versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items()) or "unknown versions"
        raise CheckpointUnreadableError(
            f"{manifest.location} is intact, but cannot be read here: {error}. It was saved with {versions}: "
            "use these, or resume from an older step"
        ) from error


@contextlib.contextmanager
def reading(store: Store, entry: Entry, gang: Gang) -> Iterator[ResumePoint]:
    """Collective. What is read and not resumed from is held meanwhile. Retention may remove it all the same where that
    was not possible: raises CheckpointNotFoundError then, which is no damage.
    """
    point = point_of(entry)
    with held(JobCatalog(store), entry, "load") if gang.leads else contextlib.nullcontext():
        try:
            yield point
        except CheckpointCorruptError:
            gang.lead(lambda: _require_present(store, point))
            raise


def _require_present(store: Store, point: ResumePoint) -> None:
    catalog = JobCatalog(store).read()
    if catalog is None or catalog.find(point.location) is None:
        raise CheckpointNotFoundError(
            f"step {point.step} ({point.location}) was removed from {store.uri} while it was being read"
        )


def committed_manifest(job: JobCatalog, point: ResumePoint) -> Manifest:
    """Asked for twice before it counts as damaged."""
    try:
        manifest = patiently(lambda: job.manifest(point))
    except CheckpointCorruptError:
        manifest = patiently(lambda: job.manifest(point))
    if manifest.location != point.location:
        raise CheckpointUnreadableError(f"the manifest in {point.location} is that of {manifest.location}")
    return manifest


def _common(saved: SavedShards) -> Any:
    common = saved.read_tensor(COMMON)
    if common is None:
        raise CheckpointUnreadableError(f"{saved.location} has no {COMMON}: it was not written by this engine")
    return plain.unpack(common)
