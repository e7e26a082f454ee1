"""Saves beside training: one at a time, over a process group of their own, gated at the optimizers' next steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from everstep.checkpoint.gang import Gang
from everstep.checkpoint.saving.flight import Flight
from everstep.checkpoint.saving.runway import Runway
from everstep.checkpoint.saving.saves import Done, Record, Saves


class Beside:
    """Who launches takes the last flight first, and waits for it: buffers and plan are used again."""

    def __init__(self, saves: Saves, gang: Gang, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._saves = saves
        self._runway = Runway(gang, optimizers)
        self._flight: Flight[Done] | None = None

    @property
    def busy(self) -> bool:
        """Whether a flight was launched that nobody has taken yet."""
        return self._flight is not None

    @property
    def landed(self) -> bool:
        """Whether the flight is over on this rank."""
        return self._flight is not None and self._flight.landed

    def launch(
        self,
        step: int,
        waited: float,
        counters: Mapping[str, int],
        record: Record,
        stood: Callable[[Done], None],
        tidy: Callable[[], None],
    ) -> None:
        """Collective. For the arguments see `Saves.launch`."""
        self._flight = self._saves.launch(step, waited, counters, record, self._runway, stood, tidy)

    def take(self) -> Flight[Done] | None:
        flight, self._flight = self._flight, None
        return flight

    def close(self, together: bool) -> None:
        """`together`: all ranks close, and no flight is under way."""
        self._runway.close(together)
