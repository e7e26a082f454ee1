"""Where saves beside training start: their thread, their process group, and the gate that holds the optimizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from everstep.checkpoint.gang import Gang
from everstep.checkpoint.saving.flight import Flight, flying_thread
from everstep.checkpoint.saving.gate import Gate, Hold
from everstep.checkpoint.saving.shards import Prepared

T = TypeVar("T")


class Runway:
    """One save at a time: buffers and plan are used again."""

    def __init__(self, gang: Gang, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._gang = gang
        self._gate = Gate(optimizers)
        self._thread = flying_thread()
        self._twin: Gang | None = None

    @property
    def twin(self) -> Gang:
        """Collective at first. The ranks' group for what flies: training's own is training's."""
        if self._twin is None:
            self._twin = self._gang.twin()
        return self._twin

    def late(self) -> Callable[[torch.Tensor], bool]:
        """Which tensors may be copied after the boundary."""
        return self._gate.protects()

    def launch(self, step: int, prepared: Prepared, fly: Callable[[Gang, Hold], T]) -> Flight[T]:
        """Collective at first. `fly` runs in the thread, over the group that it is given; until `prepared` is staged
        the optimizers' next steps wait at the hold."""
        twin, hold = self.twin, self._gate.close()
        prepared.staged = hold.open
        try:
            return Flight(step, lambda: fly(twin, hold), self._thread)
        except BaseException:  # nobody else would open it
            hold.open()
            raise

    def close(self, together: bool) -> None:
        """`together`: all ranks close, and no flight is under way."""
        self.let_go()
        if self._twin is not None and together:
            self._twin.close()

    def let_go(self) -> None:
        """Of the optimizers and of the thread: nothing is launched any more."""
        self._gate.remove()
        self._thread.close()
