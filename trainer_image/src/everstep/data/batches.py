"""Batches from data with random access: `dataset[i]` and `len(dataset)`."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch.utils.data import default_collate

from everstep.data.draws import draws_kept, seed_draws
from everstep.data.loader import Loader, OnChange, Workers
from everstep.data.order import Places, shuffled
from everstep.data.share import Share
from everstep.errors import InvalidOperationError

Collate = Callable[[list[Any]], Any]

_COLLATE = 1
"""Sets what a collate function draws apart from what the samples drew."""


class Dataset(Protocol):
    """Any map-style dataset: torch's, Hugging Face's, a list."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class Batches(Loader["MapCursor"]):
    """This rank's share of each global batch of a map-style dataset, without end.

    Epoch after epoch, each sample comes exactly once, in an order made of `seed` and epoch alone (shuffle=False: in
    the dataset's own). The batch at an epoch's end is filled up from the next. Random numbers that `dataset[i]` draws
    are seeded from seed, epoch and place, so they depend on neither ranks nor workers (seeded=False: left alone).
    `fingerprint` tells this dataset from another (default: its `fingerprint()`, or that of a Hugging Face dataset);
    without one only the length does. Rank and world size are those of the default process group unless said.
    Raises InvalidOperationError for an empty dataset and for a batch that does not divide among the ranks.
    """

    def __init__(
        self,
        dataset: Dataset,
        global_batch: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        seeded: bool = True,
        collate: Collate = default_collate,
        workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        start_method: str | None = None,
        fingerprint: str | None = None,
        on_change: OnChange = "error",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise InvalidOperationError("dataset: it has no samples")
        self.dataset = dataset
        plan = _MapPlan(
            dataset,
            len(dataset),
            Share.here(global_batch, rank, world_size),
            seed,
            shuffle,
            seeded,
            collate,
            fingerprint or fingerprint_of(dataset),
        )
        super().__init__(plan, Workers(workers, prefetch, pin_memory, start_method), on_change)

    def steps(self, epochs: float) -> int:
        """Optimizer steps that see so many epochs of the data, rounded up."""
        plan: Any = self._plan
        return -int(-epochs * plan.samples // plan.share.global_batch)


@dataclass(frozen=True, slots=True)
class MapCursor:
    """`place`: samples of this epoch that are consumed."""

    position: int = 0
    epoch: int = 0
    place: int = 0

    def after(self, count: int, samples: int) -> MapCursor:
        epochs, place = divmod(self.place + count, samples)
        return MapCursor(self.position + count, self.epoch + epochs, place)


@dataclass(frozen=True)
class _MapPlan:
    dataset: Any
    samples: int
    share: Share
    seed: int
    shuffle: bool
    seeded: bool
    collate: Collate
    fingerprint: str | None

    @property
    def order(self) -> Mapping[str, Any]:
        return {
            "kind": "map",
            "samples": self.samples,
            "seed": self.seed if self.shuffle or self.seeded else None,
            "shuffle": self.shuffle,
            "seeded": self.seeded,
            "fingerprint": self.fingerprint,
        }

    def start(self) -> MapCursor:
        return MapCursor()

    def cursor(self, fields: Mapping[str, Any]) -> MapCursor:
        return MapCursor(**fields)

    def next_epoch(self, position: int, epoch: int) -> MapCursor:
        return MapCursor(position, epoch + 1)

    def batches(self, cursor: MapCursor, worker: int, workers: int) -> Iterator[tuple[Any, MapCursor]]:
        step = self.share.global_batch
        for number in itertools.count(worker, workers):
            begin = cursor.after(number * step, self.samples)
            yield self._batch(begin.after(self.share.first, self.samples)), begin.after(step, self.samples)

    def _batch(self, first: MapCursor) -> Any:
        """This rank's samples, of which `first` is the first; they may belong to several epochs."""
        with draws_kept() if self.seeded else contextlib.nullcontext():
            samples: list[Any] = []
            at = first
            while len(samples) < self.share.size:
                count = min(self.share.size - len(samples), self.samples - at.place)
                samples += self._samples(at.epoch, np.arange(at.place, at.place + count))
                at = at.after(count, self.samples)
            if self.seeded:
                seed_draws(self.seed, first.epoch, first.place, _COLLATE)
            return self.collate(samples)

    def _samples(self, epoch: int, places: Places) -> list[Any]:
        indices = shuffled(places, self.samples, (self.seed, epoch)) if self.shuffle else places
        if not self.seeded and hasattr(self.dataset, "__getitems__"):  # one read of many rows, where it knows how
            return list(self.dataset.__getitems__(indices.tolist()))
        found = []
        for place, index in zip(places.tolist(), indices.tolist(), strict=True):
            if self.seeded:
                seed_draws(self.seed, epoch, place)
            found.append(self.dataset[index])
        return found


def fingerprint_of(dataset: Any) -> str | None:
    """What the dataset itself says: a method `fingerprint()`, or the digest that Hugging Face's datasets carry."""
    own = getattr(dataset, "fingerprint", None)
    found = own() if callable(own) else getattr(dataset, "_fingerprint", None)
    return found if isinstance(found, str) else None
