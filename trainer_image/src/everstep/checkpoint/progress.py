"""What a run reports about itself: counters of the whole gang, last metrics, and which of them belong to this step."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from everstep.catalog import Progress
from everstep.errors import InvalidOperationError

SCORE = "score"
_SMOOTHING = 0.1


def _number(name: str, value: Any) -> Any:
    """A float, or a tensor of one element without its graph: looking at it now would wait for the accelerator."""
    if isinstance(value, DTensor):
        if not all(placement.is_replicate() for placement in value.placements):
            raise InvalidOperationError(
                f"report: {name} is spread over the ranks; pass {name}.full_tensor(), on all ranks"
            )
        value = value.to_local()
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.detach().clone()
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        what = f"a tensor of {value.numel()} elements" if isinstance(value, torch.Tensor) else f"{value!r}"
        raise InvalidOperationError(f"report: {name} is {what}, not a number") from None


class RunProgress:
    """`samples` and `tokens` become gang-wide once the ranks' increments were summed (see `take`, `add`)."""

    def __init__(self) -> None:
        self.step = 0
        self.samples = 0
        self.tokens = 0
        self.epoch = 0
        self.seconds_per_step: float | None = None
        self._samples = 0
        self._tokens = 0
        self._values: dict[str, Any] = {}
        self._reported_at: dict[str, int] = {}
        self._score: tuple[int, Any] | None = None
        self._last_end: float | None = None

    def report(
        self, step: int, samples: int, tokens: int, epoch: int | None, score: Any, metrics: Mapping[str, Any]
    ) -> None:
        """Raises InvalidOperationError for a value that is no number, at once and not when it is looked at."""
        self._samples += samples
        self._tokens += tokens
        if epoch is not None:
            self.epoch = epoch
        if score is not None:
            self._score = (step, _number("score", score))
        for name, value in metrics.items():
            self._values[name] = _number(name, value)
            self._reported_at[name] = step

    def take(self) -> tuple[int, int]:
        """This rank's increments since the last call."""
        taken = (self._samples, self._tokens)
        self._samples = self._tokens = 0
        return taken

    def add(self, samples: int, tokens: int) -> None:
        self.samples += samples
        self.tokens += tokens

    def end_step(self, step: int) -> None:
        now = time.monotonic()
        if self._last_end is not None:
            took = now - self._last_end
            before = self.seconds_per_step
            self.seconds_per_step = took if before is None else before + _SMOOTHING * (took - before)
        self._last_end = now
        self.step = step

    def pause(self) -> None:
        """The time until the next step ends is no measure of a step: a save or a restore lies in it."""
        self._last_end = None

    def metrics(self) -> dict[str, float]:
        """Last values, but for NaN and infinity, which JSON does not know. Converting a tensor of an accelerator waits
        for it."""
        numbers = {name: float(value) for name, value in self._values.items()}
        return {name: value for name, value in numbers.items() if math.isfinite(value)}

    def score_at(self, step: int, metric: str) -> float | None:
        """The score of this very step: the metric that the policy names; `score` is what is reported as such. A
        training loss is never taken for an evaluation that did not happen: without it there is no score.
        """
        value: Any = None
        if metric == SCORE:
            if self._score is not None and self._score[0] == step:
                value = self._score[1]
        elif self._reported_at.get(metric) == step:
            value = self._values[metric]
        return None if value is None or not math.isfinite(float(value)) else float(value)

    def counters(self) -> dict[str, int]:
        return {"step": self.step, "samples": self.samples, "tokens": self.tokens, "epoch": self.epoch}

    def restore(self, counters: Mapping[str, int]) -> None:
        self.step = counters["step"]
        self.samples = counters["samples"]
        self.tokens = counters["tokens"]
        self.epoch = counters["epoch"]

    def as_document(self) -> Progress:
        return Progress(**self.counters())
