"""Bounded types of what is stored. A tenant can write anything into its bucket: what passes here is small enough for a
status field, comparable with a clock and writable as JSON.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field

from everstep.catalog.keys import MAX_EPOCH, MAX_STEP


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _finite_only(metrics: Any) -> Any:
    """A loss that is NaN must not make a committed save unreadable: JSON has no number for it."""
    if not isinstance(metrics, dict):
        return metrics
    return {k: v for k, v in metrics.items() if v is not None and not (isinstance(v, float) and not math.isfinite(v))}


Text = Annotated[str, Field(max_length=1024)]
Uri = Annotated[str, Field(max_length=2048)]
Moment = AwareDatetime
Count = Annotated[int, Field(ge=0, le=(1 << 53) - 1)]
Attempt = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]
Step = Annotated[int, Field(ge=0, le=MAX_STEP)]
Epoch = Annotated[int, Field(ge=0, le=MAX_EPOCH)]
Finite = Annotated[float | None, AfterValidator(_finite)]
Metrics = Annotated[dict[str, float], BeforeValidator(_finite_only)]
