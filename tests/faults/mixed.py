"""What a seed of a mixed trial stands for: what befalls a job, in which order, and at which committed steps."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "kill-container",
    "delete-pod",
    "kill-operator",
    "suspend",
    "change-of-mind",
    "edit-template",
    "edit-policy",
    "restart-now",
    "delete-job",
]
"""`change-of-mind`: suspended, and resumed before that can have ended. `delete-job`: and applied again."""

KINDS: tuple[Kind, ...] = get_args(Kind)
COUNTED = frozenset({"kill-container", "delete-pod"})
"""What may cost the job one of its restarts."""


@dataclass(frozen=True)
class Blow:
    kind: Kind
    after_step: int
    """It falls once this step is committed."""
    jitter: float
    """Seconds later."""
    pod: int
    pause: float
    """Seconds until a change of mind."""

    def __str__(self) -> str:
        whom = f" pod {self.pod}" if self.kind in COUNTED else ""
        return f"{self.kind}{whom} {self.jitter:.2f} s after step {self.after_step}"


@dataclass(frozen=True)
class MixedTrial:
    seed: int
    blows: tuple[Blow, ...]

    @classmethod
    def of(cls, seed: int, *, steps: int, save_every: int) -> MixedTrial:
        """Three or four blows. The first kinds of successive seeds are all kinds in turn, the others are drawn."""
        draw = random.Random(f"mixed {seed}")
        kinds = [KINDS[seed % len(KINDS)], *draw.choices(KINDS, k=draw.choice((2, 3)))]
        moments = sorted(draw.randrange(0, steps - save_every, save_every) for _ in kinds)
        blows = (
            Blow(kind, moment, draw.uniform(0, 1), draw.randrange(2), draw.uniform(0, 1.5))
            for kind, moment in zip(kinds, moments, strict=True)
        )
        return cls(seed, tuple(blows))

    def __str__(self) -> str:
        return f"mixed seed {self.seed}: {'; '.join(map(str, self.blows))}"
