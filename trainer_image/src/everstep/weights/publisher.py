"""The trainer's side: the full weights of a model that is spread over ranks, stored and published beside training.

Each rank stores whole tensors, about as many bytes as any other, in one safetensors file of its own: memory and the
link to storage are shared by all ranks, and what stands there is an ordinary sharded model of the Hugging Face layout,
which every reader knows. One rank that gathers everything would need the whole model in its memory and push it through
one link; a file of each rank's own *pieces* of tensors would need everstep to be read.

The copy is made at the step boundary, so that a set is the weights of one step. Files are stored and published by a
thread while training goes on; a set that is due waits for the one before, so that memory stays at one copy of what this
rank stores.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor

from everstep.catalog import Entry, File, Location, Manifest, Progress, Store, WeightSets
from everstep.catalog.keys import WEIGHTS
from everstep.checkpoint.blocks import describe_file
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.saving.flight import Flight, flying_thread
from everstep.checkpoint.session import Identity
from everstep.errors import CheckpointError, InvalidOperationError
from everstep.weights.layout import INDEX, Layout, Spec, file_name, index_of

log = logging.getLogger("everstep")

SMALL = 64 << 20
"""Tensors are spread over as many ranks as get so many bytes each."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A set on its way to storage. File `n` is stored by rank `n`."""

    location: Location
    identity: Identity
    files: Sequence[Sequence[Spec]]
    progress: Progress
    metrics: Mapping[str, float]
    started: datetime


class WeightsPublisher:
    """All methods are collective; make it where all ranks do. `assets`: files that go beside the weights, by name."""

    def __init__(self, store: Store, model: nn.Module, keep_last: int, assets: Mapping[str, bytes]) -> None:
        self._sets = WeightSets(store)
        self._model = model
        self._keep_last = keep_last
        self._assets = assets
        self._gang = Gang()
        """A group of its own: its thread speaks to the other ranks' threads while training speaks to training."""
        self._buffer = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._thread = flying_thread("everstep-weights")
        self._flight: Flight[None] | None = None
        self._identity: Identity | None = None

    def take(self, identity: Identity) -> None:
        """Take over the register of weights, and sweep what older worker groups left unfinished. Raises FencedError."""
        if self._identity is None:
            self._gang.lead(lambda: self._take(identity))
            self._identity = identity

    def _take(self, identity: Identity) -> None:
        self._sets.take(identity.claim)
        self._clean(sweep=True)

    def publish(self, step: int, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Copy the weights as they are now, and publish them beside training. Waits for the set before.

        Raises what became of that one: FencedError, or another CheckpointError after which training may go on. Raises
        InvalidOperationError where the format cannot hold a tensor.
        """
        self.settle()
        identity = self._identity
        if identity is None:
            raise InvalidOperationError("publish: take the claim first")
        state = {
            name: value for name, value in get_model_state_dict(self._model).items() if isinstance(value, torch.Tensor)
        }
        files = spread(state, self._gang.world_size)
        layouts = [Layout(specs) for specs in files]  # all of them: where one is refused, all ranks refuse it
        location = self._gang.lead(lambda: Location.new(step, identity.epoch, WEIGHTS))
        draft = Draft(location, identity, files, progress, metrics, datetime.now(UTC))
        mine = layouts[self._gang.rank] if self._gang.rank < len(layouts) else None
        self._gang.everywhere(lambda: self._make_room(mine))
        self._copy(state, mine)
        self._flight = Flight(step, lambda: self._fly(draft, mine), self._thread)

    def settle(self) -> None:
        """Wait for the set under way. Raises what became of it, the same on all ranks."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        try:
            flight.wait()
        except CheckpointError:
            raise
        except Exception as error:  # a peer that is gone is training's to find out
            raise CheckpointError(f"{type(error).__name__}: {error}") from error

    def close(self, together: bool) -> None:
        """`together`: all ranks end in order. Else nobody is waited for: what is under way is published or never is."""
        if not together:
            return
        try:
            self.settle()
        except CheckpointError as error:
            log.warning("the last weights were not published: %s", error)
        self._thread.close()
        self._gang.close()

    def _make_room(self, mine: Layout | None) -> None:
        if mine is not None and self._buffer.numel() < mine.size:
            self._buffer = torch.empty(0, dtype=torch.uint8, device="cpu")  # there is never room for both
            self._buffer = torch.empty(mine.size, dtype=torch.uint8, device="cpu")

    @torch.no_grad()
    def _copy(self, state: Mapping[str, torch.Tensor], mine: Layout | None) -> None:
        """Tensors are gathered one at a time, in the same order on all ranks; each keeps its own."""
        own = set() if mine is None else set(mine.names)
        for name, tensor in state.items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if mine is not None and name in own:
                mine.place(self._buffer, name).copy_(whole)
        if mine is not None:
            mine.write_header(self._buffer)

    def _fly(self, draft: Draft, mine: Layout | None) -> None:
        stored = self._gang.everywhere(lambda: self._store(draft, mine))
        files = [file for of_rank in self._gang.all_gather(stored) for file in of_rank]
        self._gang.lead(lambda: self._announce(draft, files))

    def _store(self, draft: Draft, mine: Layout | None) -> list[File]:
        bodies: dict[str, bytes | memoryview] = {}
        if mine is not None:
            bodies[file_name(self._gang.rank, len(draft.files))] = self._buffer[: mine.size].numpy().data
        if self._gang.leads:
            bodies |= self._assets
            if len(draft.files) > 1:
                bodies[INDEX] = index_of(draft.files)
        stored = []
        for name, body in bodies.items():
            file = describe_file(name, body, self._gang.rank)
            self._sets.store.put(draft.location.key(name), body, file.blocks)
            stored.append(file)
        return stored

    def _announce(self, draft: Draft, files: Sequence[File]) -> Entry:
        manifest = Manifest(
            location=str(draft.location),
            step=draft.location.step,
            epoch=draft.identity.epoch,
            attempt=draft.identity.attempt,
            world_size=self._gang.world_size,
            files=tuple(files),
            progress=draft.progress,
            metrics=dict(draft.metrics),
            started=draft.started,
            written=datetime.now(UTC),
        )
        entry = self._sets.publish(draft.identity.claim, manifest, self._keep_last)
        log.info("published the weights of step %d: %s, %.1f MiB", entry.step, entry.location, entry.bytes / 2**20)
        self._clean(sweep=False)
        return entry

    def _clean(self, sweep: bool) -> None:
        """A failure to remove costs space, nothing else."""
        try:
            self._sets.finish_removals()
            if sweep:
                self._sets.sweep()
        except CheckpointError as error:
            log.warning("old weights were not removed: %s", error)


def spread(state: Mapping[str, torch.Tensor], ranks: int) -> list[list[Spec]]:
    """Which rank stores which tensors whole: about as many bytes each, the same answer on all ranks.

    What is not sharded (buffers, which may differ between ranks) is rank 0's.
    """
    specs = [Spec(name, value.dtype, tuple(value.shape)) for name, value in state.items()]
    total = sum(spec.nbytes for spec in specs)
    count = max(1, min(ranks, total // SMALL))
    files: list[list[Spec]] = [[] for _ in range(count)]
    filled = [0] * count
    for spec in sorted(specs, key=lambda spec: (isinstance(state[spec.name], DTensor), -spec.nbytes, spec.name)):
        to = filled.index(min(filled)) if isinstance(state[spec.name], DTensor) else 0
        files[to].append(spec)
        filled[to] += spec.nbytes
    return [specs for specs in files if specs] or [[]]
