"""Which fault strikes at which phase: data, and nothing that knows how.

A case is one run of eight steps that saves every second one. The fault strikes in the save of step 4, in the removal
of step 2, which the save of step 6 makes expendable, or in the restore of step 4.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Phase = Literal[
    "staging",
    "upload begun",
    "part stored",
    "upload completing",
    "metadata",
    "manifest",
    "swap sent",
    "swap unanswered",
    "mark",
    "removal",
    "removal half done",
    "restore",
    "step saved again",
]
PHASES: tuple[Phase, ...] = get_args(Phase)
Fault = Literal[
    "kill rank 0",
    "kill rank 1",
    "kill uploader 0",
    "kill uploader 1",
    "kill rank 0, request late",
    "503",
    "slow down",
    "stall",
    "reset",
    "lost answer",
    "outage",
]

UPLOADING: tuple[Phase, ...] = ("upload begun", "part stored", "upload completing")
COMMITTING: tuple[Phase, ...] = ("metadata", "manifest", "swap sent", "swap unanswered", "mark")
SAVING: tuple[Phase, ...] = ("staging", *UPLOADING, *COMMITTING)
REQUESTS: tuple[Phase, ...] = (*UPLOADING, "metadata", "manifest", "swap sent", "mark", "removal", "restore")
"""Phases that are one kind of request, which weather can befall."""
WEATHER: tuple[Fault, ...] = ("503", "slow down", "stall", "reset", "lost answer")


@dataclass(frozen=True)
class Case:
    phase: Phase
    fault: Fault

    @property
    def name(self) -> str:
        return f"{self.phase}: {self.fault}"

    @property
    def slug(self) -> str:
        """For names of folders."""
        return f"{self.phase}-{self.fault}".replace(" ", "-").replace(",", "")

    @property
    def kills_rank(self) -> bool:
        """The gang ends by it; the next one has to go on."""
        return self.fault.startswith("kill rank")

    @property
    def victim(self) -> int | None:
        """The rank that dies, or whose uploader dies."""
        found = [word for word in self.fault.replace(",", " ").split() if word.isdigit()]
        return int(found[0]) if self.fault.startswith("kill") else None

    @property
    def begins_at(self) -> int:
        """The step from which the run that is struck sets out. Where it is above 0, steps 2 and 4 stand before."""
        return {"restore": 4, "step saved again": 2}.get(self.phase, 0)


def whole() -> list[Case]:
    ranks: tuple[Fault, ...] = ("kill rank 0", "kill rank 1")
    kills = [*SAVING, "removal", "removal half done", "restore", "step saved again"]
    cases = [Case(phase, fault) for phase in kills for fault in ranks]
    for phase in ("staging", *UPLOADING, "manifest", "swap sent"):
        cases += [Case(phase, fault) for fault in ("kill uploader 0", "kill uploader 1")]
    late: tuple[Phase, ...] = ("part stored", "upload completing", "metadata", "manifest", "swap sent", "mark")
    cases += [Case(phase, "kill rank 0, request late") for phase in late]
    cases += [Case(phase, fault) for phase in REQUESTS for fault in WEATHER]
    cases += [Case("part stored", "outage"), Case("manifest", "outage")]
    return cases


QUICK = (
    Case("swap unanswered", "kill rank 0"),
    Case("swap sent", "kill rank 0, request late"),
    Case("removal half done", "kill rank 0"),
    Case("part stored", "kill uploader 1"),
    Case("manifest", "slow down"),
)
"""A fault of each kind."""
LAUNCHED = Case("part stored", "kill rank 1")
"""The one that is tried below torchrun's own command, as in a container."""


def shuffled(cases: Sequence[Case], seed: int) -> list[Case]:
    order = list(cases)
    random.Random(seed).shuffle(order)
    return order
