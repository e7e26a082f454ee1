"""everstep's trainer side: committed checkpoints for distributed PyTorch. Importing it costs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everstep.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointUnreadableError,
    FencedError,
    InvalidOperationError,
)

if TYPE_CHECKING:
    from everstep.checkpoint.checkpointer import Checkpointer

__all__ = [
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "CheckpointUnreadableError",
    "Checkpointer",
    "FencedError",
    "InvalidOperationError",
]


def __getattr__(name: str) -> object:
    if name == "Checkpointer":
        from everstep.checkpoint.checkpointer import Checkpointer

        return Checkpointer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
