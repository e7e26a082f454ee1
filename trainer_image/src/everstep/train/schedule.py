"""The learning rate as a function of the absolute step, so that it depends on nothing that a restart could lose."""

from __future__ import annotations

import math


def factor(step: int, total: int, warm_up: int, minimum: float) -> float:
    """Share of the peak learning rate for optimizer step `step` (0-based): linear warm-up, then cosine to `minimum`."""
    if step < warm_up:
        return (step + 1) / warm_up
    done = min(1.0, (step - warm_up) / max(1, total - 1 - warm_up))
    return minimum + (1 - minimum) * 0.5 * (1 + math.cos(math.pi * done))
