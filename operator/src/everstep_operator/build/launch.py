"""What all pods of one attempt share. It is read from the fenced catalog, or from the siblings that stand already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from everstep_operator.api.spec import MAX_NODES
from everstep_operator.build import names


@dataclass(frozen=True, slots=True)
class Launch:
    attempt: int
    nodes: int
    epoch: int
    """The catalog's epoch and generation after the fence."""
    generation: int
    resume_path: str = ""
    """URI of the checkpoint to resume; empty: a fresh start."""
    resume_step: int | None = None
    rendezvous: str | None = None
    """Address of the rendezvous service; None for a gang of one."""

    def annotations(self) -> dict[str, str]:
        return {
            names.NODES: str(self.nodes),
            names.EPOCH: str(self.epoch),
            names.GENERATION: str(self.generation),
            names.RESUME_PATH: self.resume_path,
            names.RESUME_STEP: "" if self.resume_step is None else str(self.resume_step),
            names.RENDEZVOUS: self.rendezvous or "",
        }

    @classmethod
    def read(cls, attempt: int, annotations: Mapping[str, str]) -> Self | None:
        """The launch that a pod was built with; None where its annotations were tampered with."""
        try:
            step, nodes = annotations[names.RESUME_STEP], int(annotations[names.NODES])
            if not 1 <= nodes <= MAX_NODES:
                return None
            return cls(
                attempt=attempt,
                nodes=nodes,
                epoch=int(annotations[names.EPOCH]),
                generation=int(annotations[names.GENERATION]),
                resume_path=annotations[names.RESUME_PATH],
                resume_step=int(step) if step else None,
                rendezvous=annotations.get(names.RENDEZVOUS) or None,
            )
        except (KeyError, ValueError):
            return None
