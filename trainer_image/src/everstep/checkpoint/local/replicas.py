"""A copy of each rank's part on another node, straight from one mapped file into another.

Every rank sends its part to one rank of the next node; in rounds of a chunk each, so that nobody waits for one that
waits for him, and nothing is held but the files themselves. A copy that fails costs itself: the save stands without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
import torch.distributed as dist

from everstep.catalog.keys import METADATA
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.local.folder import DOCUMENT, LocalFolder, Slot, write
from everstep.errors import CheckpointError
from everstep.transfer import SharedBuffer

CHUNK = 16 << 20
SMALL = (METADATA, DOCUMENT)
"""Files that are written anew each time, the document last."""

Sizes = tuple[tuple[str, int], ...]
"""Of the files of a part, by name."""


def targets(homes: Sequence[str]) -> dict[int, int]:
    """By rank the rank that keeps its copy, one of the next node; none for a single node. `homes`: the node of each
    rank."""
    nodes = sorted(set(homes))
    if len(nodes) < 2:
        return {}
    members = {node: [rank for rank, home in enumerate(homes) if home == node] for node in nodes}
    found = {}
    for rank, home in enumerate(homes):
        there = members[nodes[(nodes.index(home) + 1) % len(nodes)]]
        found[rank] = there[members[home].index(rank) % len(there)]
    return found


@dataclass(frozen=True)
class Incoming:
    """A part on its way here: mapped files, and memory for the small ones."""

    slot: Slot
    buffers: dict[str, SharedBuffer]
    small: dict[str, bytearray]

    def view(self, name: str, size: int) -> memoryview:
        return memoryview(self.small[name]) if name in self.small else self.buffers[name].view[:size]


class Replicas:
    """`gang`: a group that nothing else uses meanwhile."""

    def __init__(self, gang: Gang, folder: LocalFolder, claim: str) -> None:
        """Collective."""
        self._gang = gang
        self._folder = folder
        self._claim = claim
        self._targets = targets(gang.all_gather(gang.everywhere(folder.make)))
        self._sources = [source for source, target in self._targets.items() if target == gang.rank]
        self._kept: dict[tuple[int, str], dict[str, SharedBuffer]] = {}

    def send(self, own: Slot, views: dict[str, memoryview]) -> str | None:
        """Collective. Copy the part in `own`, whose large files are `views`, to the same slot of another node; returns
        why not all copies were made, the same on all ranks."""
        if not self._targets:
            return "all ranks are on one node"

        def read() -> dict[str, memoryview]:
            return {name: memoryview(bytearray((own.path / name).read_bytes())) for name in SMALL}

        try:
            views = {**views, **self._gang.everywhere(read)}
        except CheckpointError as error:
            return str(error)
        sizes: list[Sizes] = self._gang.all_gather(tuple((name, len(view)) for name, view in views.items()))
        incoming: dict[int, Incoming] = {}
        refused: dict[int, str] = {}
        for source in self._sources:
            try:
                incoming[source] = self._prepare(source, own.path.name, sizes[source])
            except Exception as error:  # noqa: BLE001 - the others wait to hear of it
                refused[source] = f"rank {source} has no copy on the node of rank {self._gang.rank}: {error}"
        told = {source: why for each in self._gang.all_gather(refused) for source, why in each.items()}
        outgoing = [] if self._gang.rank in told else list(_chunks(views, sizes[self._gang.rank]))
        arriving = [
            list(_chunks({name: part.view(name, size) for name, size in sizes[source]}, sizes[source]))
            for source, part in incoming.items()
        ]
        group = self._gang.group
        for sent, *received in zip_longest(outgoing, *arriving):
            work = []
            if sent is not None:
                work.append(dist.isend(_tensor(sent), group_dst=self._targets[self._gang.rank], group=group))
            for source, chunk in zip(incoming, received, strict=True):
                if chunk is not None:
                    work.append(dist.irecv(_tensor(chunk), group_src=source, group=group))
            for each in work:
                assert each is not None
                each.wait()
        failure = self._finish(incoming)
        failures = [*told.values(), *(each for each in self._gang.all_gather(failure) if each)]
        return failures[0] if failures else None

    def close(self) -> None:
        for buffers in self._kept.values():
            for buffer in buffers.values():
                buffer.close()
        self._kept.clear()

    def _prepare(self, source: int, name: str, sizes: Sizes) -> Incoming:
        slot = self._folder.slot(self._claim, source, name)
        slot.clear()
        kept = self._kept.setdefault((source, name), {})
        wanted = {file: size for file, size in sizes if file not in SMALL}
        for file in [file for file, buffer in kept.items() if buffer.size != wanted.get(file)]:
            kept.pop(file).close()
        slot.keep_only(set(kept))
        for file, size in wanted.items():
            if file not in kept:
                kept[file] = self._folder.buffer(slot.path / file, size)
        return Incoming(slot, kept, {file: bytearray(size) for file, size in sizes if file in SMALL})

    @staticmethod
    def _finish(incoming: dict[int, Incoming]) -> str | None:
        try:
            for part in incoming.values():
                for name in SMALL:
                    write(part.slot.path / name, part.small[name])
        except OSError as error:
            return str(error)
        return None


def _chunks(views: dict[str, memoryview], sizes: Sizes) -> list[memoryview]:
    """In the order of `sizes`, which both ends have."""
    return [views[name][at : at + CHUNK] for name, size in sizes for at in range(0, size, CHUNK)]


def _tensor(chunk: memoryview) -> torch.Tensor:
    return torch.frombuffer(chunk, dtype=torch.uint8)
