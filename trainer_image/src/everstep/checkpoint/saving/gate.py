"""Holds the next optimizer step until a save has copied what that step would change.

Between two steps of an optimizer its parameters and its state stand still, so that a save may copy them while the next
forward and backward passes run. A hook before each step waits for the copy; the script needs no change. Everything else
(buffers, averages of weights, frozen parameters that somebody may update by hand) has no such moment, and neither has
what is trained past the hooks, as by a CUDA graph that is replayed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor

log = logging.getLogger("everstep")


class Hold:
    """One closing of the gate."""

    def __init__(self) -> None:
        self.waited = 0.0
        """Seconds for which a step has waited."""
        self._arrived: float | None = None
        self._opened = threading.Event()

    def open(self) -> None:
        if self._arrived is not None:
            self.waited = time.monotonic() - self._arrived
        self._opened.set()

    def wait(self) -> None:
        if not self._opened.is_set():
            self._arrived = self._arrived or time.monotonic()
            self._opened.wait()


class Gate:
    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers
        self._hold: Hold | None = None
        self._seen: set[torch.optim.Optimizer] = set()
        """Those whose hook has run since the gate was closed last, or made."""
        self._told = False
        self._hooks = [each.register_step_pre_hook(self._before_step) for each in optimizers]
        for each, hook in zip(optimizers, self._hooks, strict=True):  # one that was there may change what is copied
            each._optimizer_step_pre_hooks.move_to_end(hook.id, last=False)  # type: ignore[attr-defined]

    def close(self) -> Hold:
        """From now on a step waits until the returned hold is opened."""
        self._hold = Hold()
        self._seen.clear()
        return self._hold

    def protects(self) -> Callable[[torch.Tensor], bool]:
        """Whether a tensor, of those that are there now, changes in a step of these optimizers only.

        One of which no step was seen since the gate was closed last may have taken one all the same.
        """
        storages: set[int] = set()
        for optimizer in self._optimizers:
            if optimizer not in self._seen:
                self._tell_unseen(optimizer)
                continue
            for group in optimizer.param_groups:
                storages.update(_storage(parameter) for parameter in group["params"] if parameter.requires_grad)
            for state in optimizer.state.values():
                storages.update(_storage(value) for value in state.values() if isinstance(value, torch.Tensor))
        storages.discard(0)
        return lambda tensor: _storage(tensor) in storages

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _tell_unseen(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "no step of %s was seen since the save before: what it trains is copied while training stands still. "
                "A CUDA graph that is replayed goes past the optimizer's hooks: with such steps set checkpoint.async "
                "to false",
                type(optimizer).__name__,
            )

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._seen.add(optimizer)
        if self._hold is not None:  # it stays: optimizers may step in several threads, and each of them waits
            self._hold.wait()


def _storage(tensor: torch.Tensor) -> int:
    local: torch.Tensor = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
    return local.untyped_storage().data_ptr()
