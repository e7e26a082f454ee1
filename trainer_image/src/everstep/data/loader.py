"""Batches with a position: what is kept is the position of what was *consumed*, however far workers have read ahead.

A plan says which batches follow a cursor. It is the same on all ranks but for the share that it reads, so all ranks
have the same state, which therefore fits any number of ranks and of workers.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import signal
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from everstep.errors import InvalidOperationError

log = logging.getLogger("everstep")

FORMAT = 1
OnChange = Literal["error", "warn"]


class Cursor(Protocol):
    """Where a run is in its data: plain numbers in a frozen dataclass."""

    @property
    def position(self) -> int: ...
    @property
    def epoch(self) -> int: ...


C = TypeVar("C")


class Plan(Protocol[C]):
    """Which batches follow which cursor. Sent to workers, so it must be picklable where they are spawned."""

    @property
    def order(self) -> Mapping[str, Any]:
        """What gives a cursor its meaning; a state with another order is a state of other data."""

    def start(self) -> C:
        """The beginning of epoch 0."""

    def cursor(self, fields: Mapping[str, Any]) -> C:
        """The cursor whose fields were kept."""

    def next_epoch(self, position: int, epoch: int) -> C:
        """The beginning of the epoch after `epoch`, with `position` samples consumed so far."""

    def batches(self, cursor: C, worker: int, workers: int) -> Iterator[tuple[Any, C]]:
        """Every `workers`-th batch from the `worker`-th on, without end, each with the cursor after it."""


@dataclass(frozen=True)
class Workers:
    """How batches are made: in this process (count 0), or by processes that read ahead."""

    count: int = 0
    prefetch: int = 2
    pin_memory: bool = False
    start_method: str | None = None

    def __post_init__(self) -> None:
        if self.count < 0 or self.prefetch < 1:
            raise InvalidOperationError(
                f"workers={self.count}, prefetch={self.prefetch}: no fewer than 0 workers, each at least 1 batch ahead"
            )


class Loader(Generic[C]):
    """An endless iterator over this rank's batches. `get_state()`/`set_state()` are what a Checkpointer uses."""

    def __init__(self, plan: Plan[C], workers: Workers, on_change: OnChange = "error") -> None:
        if on_change not in ("error", "warn"):
            raise InvalidOperationError(f"on_change={on_change!r}: use 'error' or 'warn'")
        self._plan = plan
        self._workers = workers
        self._on_change = on_change
        self._cursor: C = plan.start()
        self._source: Iterator[tuple[Any, C]] | None = None
        self._processes: list[Any] = []

    @property
    def position(self) -> int:
        """Samples that the whole gang has consumed since the run began."""
        return int(self._at.position)

    @property
    def epoch(self) -> int:
        """Of what comes next, from 0; of what came last, where a stream may have ended there."""
        return int(self._at.epoch)

    @property
    def _at(self) -> Any:
        return self._cursor

    def __iter__(self) -> Loader[C]:
        return self

    def __next__(self) -> Any:
        """This rank's share of the next global batch. After an exception the same batch is tried again."""
        if self._source is None:
            self._source = self._begin()
        try:
            batch, self._cursor = next(self._source)
        except StopIteration:
            self.close()
            raise InvalidOperationError("the data ended, which endless data never does") from None
        except BaseException:
            self.close()
            raise
        return batch

    def get_state(self) -> dict[str, Any]:
        """The same on all ranks: plain numbers and strings."""
        return {"format": FORMAT, "order": dict(self._plan.order), "cursor": asdict(self._at)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Raises InvalidOperationError where the state is that of other data or of another order.

        With on_change="warn" the changed data is begun with an epoch of its own.
        """
        if not isinstance(state, Mapping) or state.get("format") != FORMAT or not {"order", "cursor"} <= state.keys():
            raise InvalidOperationError(
                f"data: the checkpoint's state is none of {type(self).__name__}: it was saved with other code"
            )
        self.close()
        kept = state["cursor"]
        changes = differing(state["order"], self._plan.order)
        if not changes:
            self._cursor = self._plan.cursor(kept)
            return
        message = f"data: the checkpoint was made with other data or another order: {'; '.join(changes)}"
        if self._on_change == "error" or state["order"].get("kind") != self._plan.order.get("kind"):
            raise InvalidOperationError(
                f"{message}. Put the data back as it was, or begin a new epoch with what is there: on_change='warn'"
            )
        self._cursor = self._plan.next_epoch(int(kept["position"]), int(kept["epoch"]))
        log.warning("%s; epoch %d begins with what is there now", message, self.epoch)

    def close(self) -> None:
        """End the workers; the next batch starts them again. Done at the process's end too."""
        source, self._source = self._source, None
        # By name: somebody's traceback may hold the iterator. A worker that is killed while torch still has it on its
        # list makes torch raise wherever the process then is.
        end = getattr(source, "_shutdown_workers", None)
        if end is not None:
            end()  # tells them, and waits some seconds
        for process in self._processes:
            if process.is_alive():
                process.kill()
                process.join()
        self._processes = []
        _OPEN.discard(self)

    def _begin(self) -> Iterator[tuple[Any, C]]:
        workers = self._workers
        if workers.count == 0:
            return self._plan.batches(self._cursor, 0, 1)
        loader: DataLoader[tuple[Any, C]] = DataLoader(
            _Feed(self._plan, self._cursor),
            batch_size=None,
            num_workers=workers.count,
            prefetch_factor=workers.prefetch,
            pin_memory=workers.pin_memory,
            multiprocessing_context=workers.start_method,
            collate_fn=_as_it_is,
            worker_init_fn=_begin_worker,
            generator=torch.Generator(),  # or the workers' seed would be drawn from the model's random numbers
        )
        source = iter(loader)
        self._processes = list(getattr(source, "_workers", ()))
        _OPEN.add(self)
        return source


_OPEN: weakref.WeakSet[Loader[Any]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Before multiprocessing's own end, which waits for its children for ever: these ignore its SIGTERM."""
    for loader in list(_OPEN):
        loader.close()


def differing(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} was {kept.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*kept, *now})
        if kept.get(name) != now.get(name)
    ]


class _Feed(IterableDataset[Any], Generic[C]):
    """A worker's part. DataLoader takes one batch of each worker in turn, which is the plan's own order."""

    def __init__(self, plan: Plan[C], cursor: C) -> None:
        self._plan = plan
        self._cursor = cursor

    def __iter__(self) -> Iterator[tuple[Any, C]]:
        here = get_worker_info()
        assert here is not None
        return self._plan.batches(self._cursor, here.id, here.num_workers)


def _as_it_is(item: Any) -> Any:
    return item


def _begin_worker(number: int) -> None:
    """torchrun signals the whole process group: a worker must outlive SIGTERM, or the last step has no batch."""
    for each in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError):
            signal.signal(each, signal.SIG_IGN)
