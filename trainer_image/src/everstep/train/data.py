"""Samples as a function of the global position: position p is the same sample on any number of ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from everstep.errors import InvalidOperationError
from everstep.train.text import Document

BYTE_OFFSET = 3
"""ByT5's vocabulary: padding, end of text, unknown, then one token a byte value."""
END_OF_TEXT = 1
VOCABULARY = 384

Tokens = npt.NDArray[np.unsignedinteger[Any]]
Encode = Callable[[bytes], Tokens]


def encode_bytes(text: bytes) -> Tokens:
    """What ByT5Tokenizer gives, without its loop over characters."""
    tokens = np.frombuffer(text, dtype=np.uint8).astype(np.uint16) + BYTE_OFFSET
    return np.append(tokens, END_OF_TEXT).astype(np.uint16)


class TextDataset:
    """Documents joined and cut into windows of `sequence` + 1 tokens (inputs and their successors)."""

    def __init__(self, tokens: Tokens, sequence: int) -> None:
        self.tokens = tokens
        self.sequence = sequence
        if len(self) == 0:
            raise InvalidOperationError(f"{self.tokens.size} tokens do not make one sample of {sequence} tokens")

    @classmethod
    def of(cls, documents: Iterable[Document], sequence: int, encode: Encode = encode_bytes) -> TextDataset:
        parts = [encode(document.text) for document in documents]
        tokens: Tokens = np.concatenate(parts) if parts else np.empty(0, dtype=np.uint16)
        return cls(tokens, sequence)

    def __len__(self) -> int:
        return max(0, (self.tokens.size - 1) // self.sequence)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Tokens of one sample: [sequence + 1], int64."""
        start = index * self.sequence
        return torch.from_numpy(self.tokens[start : start + self.sequence + 1].astype(np.int64))

    def digest(self) -> str:
        """Of the text and of how it is cut: what a position means."""
        hashed = hashlib.sha256(f"{self.sequence} {self.tokens.dtype.str} ".encode())
        hashed.update(self.tokens.tobytes())
        return hashed.hexdigest()


class GlobalOrder:
    """The order of samples: a permutation for each epoch, from the seed alone."""

    def __init__(self, samples: int, seed: int) -> None:
        self.samples = samples
        self.seed = seed
        self._epoch = -1
        self._permutation: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def index_at(self, position: int) -> int:
        epoch, place = divmod(position, self.samples)
        if epoch != self._epoch:
            # RandomState's stream is frozen by numpy for good; Generator's is not
            self._permutation = np.random.RandomState([self.seed & 0xFFFFFFFF, epoch]).permutation(self.samples)
            self._epoch = epoch
        return int(self._permutation[place])


class GlobalBatches:
    """This rank's share of each global batch. The state is global: {seed, epoch, position, dataset}.

    `position` counts samples of the whole gang since the start of the run.
    """

    def __init__(self, dataset: TextDataset, global_batch: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if global_batch % world_size:
            raise InvalidOperationError(f"global_batch: {global_batch} samples do not divide among {world_size} ranks")
        self.dataset = dataset
        self.global_batch = global_batch
        self.position = 0
        self._digest = dataset.digest()
        self._order = GlobalOrder(len(dataset), seed)
        self._share = global_batch // world_size
        self._rank = rank

    @property
    def epoch(self) -> int:
        return self.position // len(self.dataset)

    def __iter__(self) -> GlobalBatches:
        return self

    def __next__(self) -> torch.Tensor:
        """Tokens [local batch, sequence + 1], int64."""
        first = self.position + self._rank * self._share
        self.position += self.global_batch
        return torch.stack([self.dataset[self._order.index_at(p)] for p in range(first, first + self._share)])

    def get_state(self) -> dict[str, Any]:
        return {"seed": self._order.seed, "epoch": self.epoch, "position": self.position, "dataset": self._digest}

    def set_state(self, state: dict[str, Any]) -> None:
        """Raises InvalidOperationError where the state is that of another text or order."""
        if state["dataset"] != self._digest:
            raise InvalidOperationError("data: the checkpoint was made with another text or another length of sequence")
        if state["seed"] != self._order.seed:
            raise InvalidOperationError(
                f"data: the checkpoint's order has seed {state['seed']}, this run's {self._order.seed}"
            )
        self.position = int(state["position"])
