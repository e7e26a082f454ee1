"""What a seed stands for: which fault strikes whom, at which moment of the run, and what becomes of the request."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Literal

STEPS = 40
SAVE_EVERY = 5
SEEDS = tuple(range(10))
FEW = (1, 5, 6, 9)
"""Each moment and each fault at least once: what every change is tried with."""

Fault = Literal["kill-worker", "kill-container", "delete-pod"]
Moment = Literal["step", "shard", "manifest", "swap"]
"""In a step; a rank uploads a shard; the manifest is stored and the swap on its way; the swap was applied, unheard."""
Fate = Literal["lost", "applied", "late"]
"""Of a request held at the gate: lost; let through once the fault has struck; let through when a successor reigns."""

FAULTS: tuple[Fault, ...] = ("kill-worker", "kill-container", "delete-pod")
FATES: tuple[Fate, ...] = ("lost", "applied", "late")
MOMENTS: tuple[Moment, ...] = ("step", "shard", "manifest", "swap")
# The nine combinations of seeds 0 to 8 come first, then those after the swap.
COMBINATIONS: tuple[tuple[Moment, Fault], ...] = tuple(itertools.product(MOMENTS, FAULTS))


@dataclass(frozen=True)
class Trial:
    seed: int
    fault: Fault
    moment: Moment
    step: int
    """In which step, or during the save of which step."""
    rank: int
    """Whose shard (moment `shard`); which pod by its index (moment `step`)."""
    bystander: bool
    """It strikes the other pod, not the one whose request is held."""
    fate: Fate
    jitter: float
    """Seconds after the step was seen."""

    @classmethod
    def of(cls, seed: int) -> Trial:
        turn, combination = divmod(seed, len(COMBINATIONS))
        moment, fault = COMBINATIONS[combination]
        draw = random.Random(f"everstep {seed}")
        step = draw.randrange(12, 30)
        fate = FATES[(MOMENTS.index(moment) + FAULTS.index(fault) + turn) % len(FATES)]
        bystander = moment in ("shard", "manifest") and draw.random() < 0.3
        return cls(
            seed=seed,
            fault=fault,
            moment=moment,
            step=step if moment == "step" else step // SAVE_EVERY * SAVE_EVERY,
            rank=draw.randrange(2),
            bystander=bystander,
            fate="applied" if bystander or moment == "swap" else fate,
            jitter=draw.uniform(0, 0.4),
        )

    def __str__(self) -> str:
        if self.moment == "step":
            return f"seed {self.seed}: {self.fault} of pod {self.rank} in step {self.step} + {self.jitter:.2f} s"
        whom = "the other pod" if self.bystander else "its pod"
        where = f"shard of rank {self.rank}" if self.moment == "shard" else self.moment
        return f"seed {self.seed}: {self.fault} of {whom} at {where} of step {self.step}, the request {self.fate}"
