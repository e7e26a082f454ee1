"""New weights as they are published, for a process that trains nothing: an inference server, an evaluation.

What it looks at is one small register, by a conditional GET that has no body while nothing is new. A set is named there
only when all of its files are stored, and is loaded only if each byte is the one that was published; a set that is
removed while it is being read has been followed by newer ones, so the newest is read instead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from everstep.catalog import Entry, File, Location, S3Access, Store, Unchanged, WeightSets, open_store
from everstep.catalog.sums import BLOCK
from everstep.checkpoint.blocks import read_verified_into
from everstep.errors import (
    ArchitectureMismatchError,
    CheckpointCorruptError,
    StorageUnavailableError,
)
from everstep.weights.layout import parse

log = logging.getLogger("everstep")

PIECE = 64 * BLOCK
"""Bytes of one request: 16 MiB."""


@dataclass(frozen=True)
class Weights:
    """One set, whole and verified, in the memory of this process."""

    step: int
    epoch: int
    """Of the worker group that published it: where it rises, training was restarted, and steps may fall."""
    location: str
    tensors: Mapping[str, torch.Tensor]
    """On the CPU, by their names in the model's state dict."""

    def load_into(self, module: nn.Module) -> None:
        """Copy into a plain module of the same architecture, on any device and in the module's own types.

        Raises ArchitectureMismatchError that names the first tensors that differ; the module is then as it was.
        """
        target = module.state_dict()
        wanted = {name: tuple(value.shape) for name, value in target.items() if isinstance(value, torch.Tensor)}
        stored = {name: tuple(value.shape) for name, value in self.tensors.items()}
        differing = [name for name in {**wanted, **stored} if wanted.get(name) != stored.get(name)]
        if differing:
            named = [f"{n}: {stored.get(n, 'absent')} published, {wanted.get(n, 'absent')} here" for n in differing[:3]]
            more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise ArchitectureMismatchError(f"weights of another architecture: {'; '.join(named)}{more}")
        with torch.no_grad():
            for name, value in self.tensors.items():
                target[name].copy_(value)


class WeightsWatcher:
    """Iterate over it, or call `poll`, for the sets of weights that the job at `uri` (its root) publishes.

    Only the newest counts: a consumer that is slower than the trainer skips what came between. `poll_seconds`: between
    two looks; `at_once`: requests at the same time while a set is read. One thread at a time may use it.
    """

    def __init__(self, uri: str, access: S3Access | None = None, poll_seconds: float = 1.0, at_once: int = 8) -> None:
        self._sets = WeightSets(open_store(uri, access))
        self._poll_seconds = poll_seconds
        self._at_once = at_once
        self._token: str | None = None
        self._seen: str | None = None
        self._newest: Entry | None = None

    def __iter__(self) -> Iterator[tuple[int, Weights]]:
        return self.watch()

    def watch(self, seconds: float | None = None) -> Iterator[tuple[int, Weights]]:
        """Yields (step, weights), the newest first of all; ends when nothing new came for `seconds`, or never.

        Storage that does not answer is waited for.
        """
        waited_since = time.monotonic()
        while seconds is None or time.monotonic() - waited_since <= seconds:
            try:
                found = self.poll()
            except StorageUnavailableError as error:
                log.warning("waiting for weights: %s", error)
                found = None
            if found is None:
                time.sleep(self._poll_seconds)
                continue
            yield found.step, found
            waited_since = time.monotonic()

    def poll(self) -> Weights | None:
        """The newest set if it is not the one that came last, loaded and verified; else None, for one small request.

        Raises CheckpointCorruptError where bytes that are published are damaged, StorageUnavailableError.
        """
        while (entry := self._look()) is not None and entry.location != self._seen:
            try:
                weights = _read(self._sets, entry, self._at_once)
            except CheckpointCorruptError:
                if self._still_there(entry):
                    raise
                log.info("the weights of step %d were removed while they were read", entry.step)
                continue
            self._seen = entry.location
            return weights
        return None

    def _look(self) -> Entry | None:
        snapshot = self._sets.poll(self._token)
        if isinstance(snapshot, Unchanged):
            return self._newest
        self._token = snapshot.token if snapshot else None
        self._newest = snapshot.catalog.latest() if snapshot else None
        return self._newest

    def _still_there(self, entry: Entry) -> bool:
        catalog = self._sets.read()
        return catalog is not None and catalog.find(entry.location) is not None


def _read(sets: WeightSets, entry: Entry, at_once: int) -> Weights:
    manifest = sets.manifest(entry)
    location = Location.parse(entry.location)
    files = [file for file in manifest.files if file.name.endswith(".safetensors")]
    buffers = {file.name: torch.empty(file.size, dtype=torch.uint8, device="cpu") for file in files}
    pieces = [(file, start) for file in files for start in range(0, file.size, PIECE)]
    fill = partial(_fill, sets.store, location, buffers)
    with ThreadPoolExecutor(at_once) as pool:
        for _ in pool.map(lambda piece: fill(*piece), pieces):
            pass
    tensors: dict[str, torch.Tensor] = {}
    for name, buffer in buffers.items():
        tensors |= parse(buffer, f"{sets.store.uri}/{location.key(name)}")
    return Weights(entry.step, entry.epoch, entry.location, tensors)


def _fill(store: Store, location: Location, buffers: Mapping[str, torch.Tensor], file: File, start: int) -> None:
    into = buffers[file.name][start : start + PIECE].numpy().data
    read_verified_into(store, location.key(file.name), file, start, into)
