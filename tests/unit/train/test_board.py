"""What a save costs shows beside the losses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from everstep import Checkpointer
from everstep.catalog import open_store
from everstep.checkpoint.environment import JobEnvironment
from everstep.train.board import Board


@pytest.mark.parametrize("asynchronous", [False, True])
def test_each_save_leaves_its_bytes_and_seconds(tmp_path: Path, asynchronous: bool) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    board = Board(open_store(str(tmp_path)))
    environment = JobEnvironment(root=str(tmp_path), heartbeat_seconds=60)
    model = torch.nn.Linear(3, 3)
    with Checkpointer(
        model=model, environment=environment, interval_steps=2, asynchronous=asynchronous
    ) as checkpointer:
        checkpointer.on_commit(board.committed)
        for step in checkpointer.steps(5):
            board.add(step, {"loss": 1.0})
    board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    phases = ("staged_seconds", "uploaded_seconds", "committed_seconds", "blocked_seconds", "bytes_per_second")
    assert all(found[f"checkpoint/{name}"] == [2, 4, 5] for name in (*phases, "bytes", "retries"))
    assert all(event.value > 0 for event in events.Scalars("checkpoint/bytes"))
