"""Text as samples: documents joined and cut into windows of one length."""

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
            raise InvalidOperationError(
                f"data.sequence: {sequence}: the text has {tokens.size} tokens, and one sample takes {sequence + 1}; "
                "give more text (data.source, data.max_bytes) or shorter samples"
            )

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

    def fingerprint(self) -> str:
        """Of the text and of how it is cut: what a position means."""
        hashed = hashlib.sha256(f"{self.sequence} {self.tokens.dtype.str} ".encode())
        hashed.update(self.tokens.tobytes())
        return hashed.hexdigest()
