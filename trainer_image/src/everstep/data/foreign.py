"""Somebody else's loader, whose state is each rank's own: torchdata's StatefulDataLoader, or any iterator with a state.

Such a state says nothing about other ranks, and looks the same on all of them where a sampler divides the data: without
rank and world size in it, it would be loaded on another number of ranks and silently repeat and skip samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from everstep.checkpoint.state.objects import Getter, Setter, accessors
from everstep.data.draws import draws_kept
from everstep.data.loader import FORMAT
from everstep.data.share import gang
from everstep.errors import InvalidOperationError


class PerRank:
    """An endless iterator over `loader`, with its state. It resumes on the same number of ranks only.

    `loader`, or its iterator, has state_dict()/load_state_dict() or get_state()/set_state(). Where it ends, the next
    epoch begins and is told to the `set_epoch` of the loader, its sampler and its dataset. What an epoch's beginning
    draws (a seed for workers, a permutation) comes from `seed`, rank and epoch, not from the model's random numbers.
    """

    def __init__(
        self, loader: Iterable[Any], *, seed: int = 0, rank: int | None = None, world_size: int | None = None
    ) -> None:
        self.loader = loader
        self.epoch = 0
        self._rank, self._world_size = gang(rank, world_size)
        self._seed = seed
        self._iterator: Iterator[Any] | None = None
        self._resumed: Any = None
        if not _has_state(loader):
            if not hasattr(loader, "__iter__"):
                raise InvalidOperationError(f"loader: a {type(loader).__name__} cannot be iterated")
            self._iterator = self._begin()
            accessors(self._iterator, "the loader's iterator")

    def __iter__(self) -> PerRank:
        return self

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = self._begin()
        try:
            return next(self._iterator)
        except StopIteration:
            pass
        if self._iterator is self.loader:
            raise InvalidOperationError("loader: the iterator has ended, and cannot begin again: pass what makes it")
        self.epoch += 1
        self._iterator = self._begin()
        try:
            return next(self._iterator)
        except StopIteration:
            raise InvalidOperationError(f"loader: epoch {self.epoch} has no batch on rank {self._rank}") from None

    def get_state(self) -> dict[str, Any]:
        """This rank's own."""
        if self._iterator is None:
            self._iterator = self._begin()
        return {
            "format": FORMAT,
            "order": {"kind": "per-rank"},
            "rank": self._rank,
            "world_size": self._world_size,
            "epoch": self.epoch,
            "state": self._accessors()[0](),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Raises InvalidOperationError for the state of another rank, or of another number of ranks."""
        if not isinstance(state, Mapping) or state.get("order") != {"kind": "per-rank"} or "state" not in state:
            raise InvalidOperationError("data: the checkpoint's state is none of PerRank: it was saved with other code")
        if (state["rank"], state["world_size"]) != (self._rank, self._world_size):
            raise InvalidOperationError(
                f"data: the loader's state is that of rank {state['rank']} of {state['world_size']}, this is rank "
                f"{self._rank} of {self._world_size}: it resumes on {state['world_size']} ranks only; use "
                "everstep.data.Batches or StreamBatches to change their number"
            )
        self.epoch = int(state["epoch"])
        self._resumed = state["state"]
        self._iterator = None
        self._iterator = self._begin()

    def _begin(self) -> Iterator[Any]:
        with self._draws():
            loader: Any = self.loader
            for each in (loader, getattr(loader, "sampler", None), getattr(loader, "dataset", None)):
                if each is not None and hasattr(each, "set_epoch"):
                    each.set_epoch(self.epoch)
            state, self._resumed = self._resumed, None
            if state is not None and _has_state(self.loader):
                accessors(self.loader, "loader")[1](state)
            iterator = iter(self.loader)
            if state is not None and not _has_state(self.loader):
                accessors(iterator, "the loader's iterator")[1](state)
            return iterator

    def _accessors(self) -> tuple[Getter, Setter]:
        return accessors(self.loader if _has_state(self.loader) else self._iterator, "loader")

    def _draws(self) -> Any:
        return draws_kept(self._seed, self._rank, self.epoch)


def _has_state(item: Any) -> bool:
    try:
        accessors(item, "loader")
    except InvalidOperationError:
        return False
    return True
