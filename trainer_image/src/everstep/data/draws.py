"""Random numbers that belong to a sample instead of to a process: crops, masks and noise are then the same whichever
rank or worker makes them, and the same again after a resume."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_draws(*key: int) -> None:
    """Seed Python's, numpy's and torch's CPU generators of this process from `key`."""
    words = hashlib.blake2b(f"everstep draws {' '.join(map(str, key))}".encode(), digest_size=8).digest()
    seed = int.from_bytes(words, "little")
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def draws_kept(*key: int) -> Iterator[None]:
    """What is drawn inside is not missing outside: the model's dropout goes on where it was. `key` seeds them."""
    python, numpy, generator = random.getstate(), np.random.get_state(legacy=False), torch.default_generator.get_state()
    try:
        if key:
            seed_draws(*key)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(generator)
