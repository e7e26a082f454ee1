"""From the local tier into the live objects: all ranks agree on a save, verify it, and read each byte verified again.

A part may lie on another node than that of the rank that needs it, for ranks are given out anew with each start: then a
rank of that node reads it and hands it over. What is damaged is taken off the offer, and the next best is chosen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from everstep.catalog import Beginning, Manifest, ResumePoint
from everstep.catalog.keys import METADATA
from everstep.catalog.manifest import BLOCK
from everstep.catalog.store.posix import PosixStore
from everstep.checkpoint import metadata as metadata_format
from everstep.checkpoint.blocks import read_verified_into
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.local.folder import Found, LocalFolder, Part
from everstep.checkpoint.local.offers import Choice, Copy, Offer, choose
from everstep.checkpoint.restoring.loading import THREADS, load_state
from everstep.checkpoint.restoring.reader import SavedShards
from everstep.checkpoint.restoring.restoration import Loaded, Restoration
from everstep.checkpoint.state.application import COMMON, RANK
from everstep.errors import ArchitectureMismatchError, CheckpointError, InvalidOperationError

log = logging.getLogger("everstep")

_PIECE = 4 * BLOCK
"""What is verified at a time: it does not leave the processor's cache between the copy and the sum."""

Pieces = dict[int, tuple[Part, bytes]]
"""By rank its part and the verified `.metadata` of it."""


class LocalRestore:
    def __init__(self, folder: LocalFolder, gang: Gang, restoration: Restoration) -> None:
        self._folder = folder
        self._gang = gang
        self._restoration = restoration
        self._bad: set[Copy] = set()
        """Copies that were found to be damaged."""

    def load(self, begun: Beginning | None, committed: ResumePoint | None) -> Loaded | None:
        """Collective. The newest local save that may be resumed; None where there is none. `begun` and `committed` as
        the register has them, the same on all ranks."""
        if begun is None:
            return None
        try:
            node, found = self._gang.everywhere(lambda: (self._folder.make(), self._folder.scan()))
        except CheckpointError as error:
            if self._gang.leads:
                log.warning("nothing of the local tier is used: %s", error)
            return None
        offers = [Offer(each.part.location, each.part.rank, each.part.world_size, each.part.claim) for each in found]
        homes, told = self._gather(node, offers)
        misfit: CheckpointError | None = None
        while (choice := choose(told, begun, committed, homes, self._bad)) is not None:
            started = time.monotonic()
            mine = {each.part.rank: each for each in found if each.part.location == str(choice.location)}
            damaged, pieces = self._verify(choice, mine, homes)
            if not damaged:
                try:
                    return self._restore(choice, mine, pieces, homes, started)
                except CheckpointError as error:
                    if isinstance(error, ArchitectureMismatchError | InvalidOperationError):
                        misfit = error  # it is whole
                    self._tell(choice, str(error))
                    damaged = {Copy(each, str(choice.location), rank) for rank, each in enumerate(choice.nodes)}
            self._bad |= damaged
        if misfit is not None and committed is None:
            raise misfit  # nothing else is there to begin with, and a fresh start would drop it
        return None

    def _gather(self, node: str, offers: Sequence[Offer]) -> tuple[list[str], dict[str, set[Offer]]]:
        """Collective. The node of each rank, and by node what all its ranks have found."""
        told = self._gang.all_gather((node, set(offers)))
        homes = [each for each, _ in told]
        return homes, {each: set.intersection(*(found for home, found in told if home == each)) for each in homes}

    def _verify(self, choice: Choice, mine: Mapping[int, Found], homes: Sequence[str]) -> tuple[set[Copy], Pieces]:
        """Collective. Each copy is read by one rank of its node: the damaged ones, and what the others say."""
        pieces: Pieces = {}
        damaged: dict[Copy, str] = {}
        for rank, node in enumerate(choice.nodes):
            there = [each for each, home in enumerate(homes) if home == node]
            if there[rank % len(there)] != self._gang.rank:
                continue
            try:
                _verify_files(mine[rank])
                pieces[rank] = (mine[rank].part, mine[rank].slot.read_metadata(mine[rank].part))
            except Exception as error:  # noqa: BLE001 - all ranks wait to hear of it
                damaged[Copy(node, str(choice.location), rank)] = str(error)
        told = self._gang.all_gather((damaged, pieces))
        for each, _ in told:
            for copy, reason in each.items():
                self._tell(choice, f"the part of rank {copy.rank}: {reason}")
        return (
            {copy for each, _ in told for copy in each},
            {rank: piece for _, each in told for rank, piece in each.items()},
        )

    def _restore(
        self, choice: Choice, mine: Mapping[int, Found], pieces: Pieces, homes: Sequence[str], started: float
    ) -> Loaded:
        """Collective."""

        def open_() -> LocalShards:
            files = [file for part, _ in pieces.values() for file in part.files if file.name != METADATA]
            whole = pieces[0][0].model_copy(update={"files": tuple(files)})
            holders = {
                rank: [r for r, home in enumerate(homes) if home == node] for rank, node in enumerate(choice.nodes)
            }
            saved = LocalShards(LocalFiles(self._folder, whole, mine), whole, holders)
            saved.merge([body for _, body in pieces.values()])
            return saved

        saved = self._gang.everywhere(open_)
        saved.fetch_values(self._gang)
        return self._restoration.load_saved(saved, started)

    def _tell(self, choice: Choice, reason: str) -> None:
        if self._gang.leads:
            log.warning("the local save of step %d is not used: %s", choice.location.step, reason)


def _verify_files(found: Found) -> None:
    """Raises CheckpointCorruptError."""
    store = PosixStore(found.slot.path)
    pieces = [(file, start) for file in found.part.files for start in range(0, file.size, _PIECE)]

    def check(share: int) -> None:
        scratch = memoryview(bytearray(_PIECE))
        for file, start in pieces[share::THREADS]:
            read_verified_into(store, file.name, file, start, scratch[: min(_PIECE, file.size - start)])

    with ThreadPoolExecutor(THREADS, "everstep-verify") as pool:
        list(pool.map(check, range(THREADS)))


class LocalFiles:
    """The files of one save that this node has, as if they lay together."""

    retries = 0

    def __init__(self, folder: LocalFolder, whole: Manifest, mine: Mapping[int, Found]) -> None:
        self.uri = str(folder.path)
        self._prefix = f"{whole.location}/"
        self._paths = {file.name: found.slot.path for found in mine.values() for file in found.part.files}

    def read_into(self, key: str, start: int, into: memoryview) -> int:
        name = key.removeprefix(self._prefix)
        return PosixStore(self._paths.get(name, Path(self.uri))).read_into(name, start, into)


class LocalShards(SavedShards):
    """A save of which each rank can read only what lies on its node."""

    def __init__(self, store: LocalFiles, manifest: Manifest, nodes: Mapping[int, Sequence[int]]) -> None:
        """`nodes`: by the rank that wrote a part the ranks that can read it."""
        super().__init__(store, manifest)
        self.holders = {number: nodes[file.rank or 0] for number, file in enumerate(self.files)}
        self._values: dict[str, torch.Tensor] = {}

    def merge(self, bodies: Sequence[bytes]) -> None:
        """Each rank's `.metadata`: rank 0's has the tensors, each the places in its own files."""
        parts = [metadata_format.decode(body) for body in bodies]
        tensors = {name: item for part in parts for name, item in part.state_dict_metadata.items()}
        places = {index: place for part in parts for index, place in part.storage_data.items()}
        self._metadata = Metadata(tensors, storage_data=places)

    def fetch_values(self, gang: Gang) -> None:
        """Collective. What is no tensor, where `read_tensor` finds it."""
        for name in (COMMON, f"{RANK}{gang.rank}"):
            kept = self.metadata.state_dict_metadata.get(name)
            if isinstance(kept, TensorStorageMetadata):
                self._values[name] = torch.empty(kept.size, dtype=kept.properties.dtype, device="cpu")
        load_state(dict(self._values), self, gang)

    def read_tensor(self, name: str) -> torch.Tensor | None:
        return self._values.get(name)
