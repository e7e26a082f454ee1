"""What saves and loads cost shows beside the losses."""

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
    with Checkpointer(model=model, environment=environment) as again:
        resumed = again.load_latest()
        assert resumed is not None
        board.resumed(resumed)
    board.store()
    board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    seconds = ("staged_seconds", "uploaded_seconds", "committed_seconds", "blocked_seconds")
    phases = (*seconds, "bytes_per_second", "staged_bytes_per_second", "uploaded_bytes_per_second")
    assert all(found[f"checkpoint/{name}"] == [2, 4, 5] for name in (*phases, "bytes", "retries"))
    assert all(event.value > 0 for event in events.Scalars("checkpoint/bytes"))
    assert all(found[f"restore/{name}"] == [5] for name in ("seconds", "bytes", "bytes_per_second", "retries"))
    (fetched,) = events.Scalars("restore/bytes")
    assert fetched.value >= sum(value.nbytes for value in model.state_dict().values())
