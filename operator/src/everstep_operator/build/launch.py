"""What all pods of one attempt share. It is read from the fenced catalog, or from the siblings that stand already."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from everstep_operator.api.common import MAX_LOCATION, MAX_NUMBER, MAX_STEP
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
        """The launch that a pod was built with; None where its annotations were tampered with, as far as that shows."""
        try:
            step, path = annotations[names.RESUME_STEP], annotations[names.RESUME_PATH]
            address = annotations.get(names.RENDEZVOUS) or None
            found = cls(
                attempt=attempt,
                nodes=int(annotations[names.NODES]),
                epoch=int(annotations[names.EPOCH]),
                generation=int(annotations[names.GENERATION]),
                resume_path=path,
                resume_step=int(step) if step else None,
                rendezvous=str(ipaddress.ip_address(address)) if address else None,
            )
        except (KeyError, ValueError):
            return None
        numbers = ((found.epoch, MAX_NUMBER), (found.generation, MAX_NUMBER), (found.resume_step or 0, MAX_STEP))
        bounded = 1 <= found.nodes <= MAX_NODES and all(0 <= number <= most for number, most in numbers)
        return found if bounded and len(path) <= MAX_LOCATION else None
