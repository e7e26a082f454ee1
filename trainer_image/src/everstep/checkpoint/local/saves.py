"""Saves into the local tier, beside training: each rank copies its part straight into files of its node.

A save counts once all ranks have their parts, which they tell each other; until then the one before it stays. Its files
are mapped and written over by the save after the next, so that the copy goes into pages that are there, and there is no
other buffer. A save that fails, as in a full tier, costs itself alone.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from everstep.catalog import Location, Progress
from everstep.catalog.keys import METADATA
from everstep.checkpoint import metadata as metadata_format
from everstep.checkpoint.blocks import describe_file
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.local.folder import SLOTS, LocalFolder, Part, Slot
from everstep.checkpoint.local.replicas import Replicas
from everstep.checkpoint.restoring.matching import mesh_of
from everstep.checkpoint.saving.flight import Flight
from everstep.checkpoint.saving.gate import Hold
from everstep.checkpoint.saving.layout import FileLayout
from everstep.checkpoint.saving.planning import Plans
from everstep.checkpoint.saving.runway import Runway
from everstep.checkpoint.saving.saves import versions
from everstep.checkpoint.saving.shards import Prepared, Shards
from everstep.checkpoint.saving.staging import Buffers
from everstep.checkpoint.saving.uploading import Keyed, Stored, Storing
from everstep.checkpoint.session import Identity, Session
from everstep.errors import CheckpointError
from everstep.transfer import SharedBuffer

log = logging.getLogger("everstep")


class InPlace:
    """Staged files are where they belong already."""

    def __init__(self) -> None:
        self.views: dict[str, memoryview] = {}
        """Their bytes, by name."""

    def begin(self, files: Sequence[Keyed]) -> Storing:
        self.views = {file.layout.name: file.segment.view for _, file in files}
        stored = Stored(0, time.monotonic())
        return lambda: stored

    def close(self) -> None:
        self.views.clear()


class SlotBuffers(Buffers):
    """Buffers that are the files of a slot."""

    def __init__(self, folder: LocalFolder, slot: Slot) -> None:
        super().__init__(lambda layout, size: folder.buffer(slot.path / layout.name, size))
        self._slot = slot

    def fit(self, layouts: tuple[FileLayout, ...]) -> list[SharedBuffer]:
        self._slot.clear()
        found = super().fit(layouts)
        self._slot.keep_only({layout.name for layout in layouts})
        return found


@dataclass(frozen=True)
class Kept:
    """A save that all ranks have."""

    step: int
    seconds: float
    uncopied: str | None
    """Why not every part has a copy on another node, where that is wanted."""


class LocalSaves:
    """Of one worker group. `launch` and `close` are collective, and no save may be under way in a `launch`."""

    def __init__(
        self,
        session: Session,
        identity: Identity,
        folder: LocalFolder,
        plans: Plans,
        optimizers: Sequence[torch.optim.Optimizer],
        replicas: bool = False,
        older: Sequence[Path] = (),
    ) -> None:
        """`older`: folders of the worker groups before this one, which go when nothing of them is needed any more."""
        self._session = session
        self._identity = identity
        self._folder = folder
        self._gang = session.gang
        self._runway = Runway(session.gang, optimizers)
        self._slots = [folder.slot(identity.claim, self._gang.rank, name) for name in SLOTS]
        self._files = InPlace()
        self._shards = [
            Shards(session.app, self._gang, self._files, plans, SlotBuffers(folder, slot)) for slot in self._slots
        ]
        self._replicas = self._copies() if replicas else None
        self._next = 0
        self._succeeded = False
        self._flight: Flight[Kept] | None = None
        self._older = older
        folder.drop(older, session.local_save)

    def _copies(self) -> Replicas | None:
        """Collective; the same on all ranks."""
        try:
            return Replicas(self._runway.twin, self._folder, self._identity.claim)
        except CheckpointError as error:
            if self._gang.leads:
                log.warning("local saves have no copies on other nodes: %s", error)
            return None

    @property
    def step(self) -> int | None:
        """That of the save under way."""
        return None if self._flight is None else self._flight.step

    @property
    def landed(self) -> bool:
        """Whether the save under way is over on this rank."""
        return self._flight is not None and self._flight.landed

    def launch(self, step: int, counters: Mapping[str, int], progress: Progress) -> None:
        """Copy what cannot wait of the state of `step`; the rest is copied before the optimizers' next step. Raises
        CheckpointError: nothing is saved then."""
        self._files.close()  # a file that is made anew would else keep the old one's pages
        number = self._next
        location = self._location(step)
        started, began = datetime.now(UTC), time.monotonic()
        prepared, _ = self._shards[number].prepare(counters, late=self._runway.late(), tell=lambda: None)
        mesh = mesh_of(self._session.app.model)

        def write() -> None:
            report = self._shards[number].finish(prepared, location).report
            metadata = metadata_format.encode(_metadata(prepared, report.places), str(location))
            part = Part(
                location=str(location),
                step=step,
                epoch=self._identity.epoch,
                attempt=self._identity.attempt,
                claim=self._identity.claim,
                rank=self._gang.rank,
                world_size=self._gang.world_size,
                mesh=mesh,
                files=(*report.files, describe_file(METADATA, metadata, self._gang.rank)),
                progress=progress,
                started=started,
                written=datetime.now(UTC),
                versions=versions(),
                config_digest=self._session.app.config_digest,
            )
            self._slots[number].finish(part, metadata)

        def fly(beside: Gang, _: Hold) -> Kept:
            beside.everywhere(write)
            copies = self._replicas
            uncopied = None if copies is None else copies.send(self._slots[number], self._files.views)
            return Kept(step, time.monotonic() - began, uncopied)

        self._flight = self._runway.launch(step, prepared, fly)

    def take(self, patience: float | None = None) -> Kept | None:
        """Wait for the save under way; None where there is none. Raises CheckpointError where it has failed: the one
        before stays. TimeoutError after `patience` seconds."""
        flight, self._flight = self._flight, None
        if flight is None:
            return None
        kept = flight.wait(patience)
        if not self._succeeded:  # what was resumed has its successor now
            self._folder.drop(self._older, None)
        self._succeeded, self._next = True, 1 - self._next
        return kept

    def forget(self) -> None:
        """Collective, with nothing under way. What was saved so far is of a line that was left: nobody resumes it."""

        def forget() -> None:
            self._folder.clear(self._identity.claim)
            self._folder.drop(self._older, None)

        self._gang.everywhere(forget)

    def close(self, together: bool, patience: float | None, finished: bool) -> None:
        """`together`: all ranks close; `patience`: seconds to wait for the save under way; `finished`: nobody will ever
        resume."""
        self._runway.let_go()
        try:
            self.take(patience)
        except TimeoutError:
            return
        except Exception:
            log.debug("the last local save ended with its gang", exc_info=True)
        for part in (*self._shards, self._replicas):
            if part is not None:
                part.close()
        self._runway.close(together)
        if finished:
            self._folder.remove()

    def _location(self, step: int) -> Location:
        """The same on all ranks without asking: a claim does each step once."""
        nonce = hashlib.sha256(f"{self._identity.claim} {step}".encode()).hexdigest()[:12]
        return Location(step, self._identity.epoch, nonce)


def _metadata(prepared: Prepared, places: Mapping[Any, Any]) -> Metadata:
    """Of one rank's part: rank 0's describes the tensors of the whole save, each the places in its own files."""
    found = Metadata({}) if prepared.plan.metadata is None else prepared.plan.own_metadata()
    found.storage_data = dict(places)
    return found
