"""What a user wants kept. Recorded in the register when it is applied, so that whoever lists a run can say why a
checkpoint stays.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from everstep.catalog.fields import Count, Text


class Best(BaseModel):
    model_config = ConfigDict(frozen=True)
    count: Count
    mode: Literal["min", "max"] = "min"
    metric: Text | None = None
    """Only scores of this metric compete, and those that do not tell theirs. None: all do."""


class Retention(BaseModel):
    """The union of what its parts keep. None (or 0): that part keeps nothing. With no part at all everything stays."""

    model_config = ConfigDict(frozen=True, extra="allow")
    last: Count | None = None
    best: Best | None = None
    every: Count | None = None
    within: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Seconds since the commit."""

    @property
    def keeps_everything(self) -> bool:
        return not (self.last or self.every or self.within or (self.best and self.best.count))
