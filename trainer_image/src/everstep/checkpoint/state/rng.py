"""Random number generators of one rank: Python's, numpy's, torch's, and the accelerator's."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch


def capture() -> dict[str, Any]:
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=True),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore(state: dict[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_for(rank: int, step: int, world_size: int) -> int:
    """The seed of a rank that did not exist when the step was saved: the same in every run."""
    return int.from_bytes(
        hashlib.sha256(f"everstep rank {rank}/{world_size} at step {step}".encode()).digest()[:4], "big"
    )


def reseed(rank: int, step: int, world_size: int) -> None:
    seed = seed_for(rank, step, world_size)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
