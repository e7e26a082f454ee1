"""The checkpointer goes by the policy that the operator gives it in EVERSTEP_POLICY."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everstep.catalog import JobCatalog, open_store
from everstep.catalog.store.posix import PosixStore
from everstep.checkpoint.environment import read_environment
from tests.unit.checkpoint.conftest import Job

Jobs = Callable[..., Job]


@pytest.fixture
def train(job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[int, float | None]]]:
    """Trains six steps under a policy; steps and scores of what is committed."""

    def run(**policy: Any) -> list[tuple[int, float | None]]:
        monkeypatch.setenv("EVERSTEP_ROOT", str(tmp_path))
        monkeypatch.setenv("EVERSTEP_POLICY", json.dumps({"keepLast": 9, "async": False, **policy}))
        mine = job()
        with mine.checkpointer(tmp_path, environment=read_environment()) as checkpointer:
            for step in checkpointer.steps(6):
                mine.step()
                metrics: dict[str, Any] = {"eval/loss": float(step)} if step % 4 == 0 else {}
                checkpointer.report(score=0.5, **metrics)
        return [(entry.step, entry.score) for entry in JobCatalog(open_store(str(tmp_path))).require().live()]

    return run


def test_saves_fall_due_by_steps(train: Callable[..., list[tuple[int, float | None]]]) -> None:
    assert [step for step, _ in train(interval={"steps": 3})] == [3, 6]


def test_saves_fall_due_by_seconds(train: Callable[..., list[tuple[int, float | None]]]) -> None:
    """Agreed upon at one step, saved after the next; the last step is saved in any case."""
    assert [step for step, _ in train(interval={"seconds": 1e-6})] == [2, 4, 6]
    assert [step for step, _ in train(interval={"seconds": 3600})] == [2, 4, 6], "the run is done: nothing is added"


def test_the_metric_that_is_named_is_the_score(train: Callable[..., list[tuple[int, float | None]]]) -> None:
    """Only the step that reported it has a score."""
    found = train(interval={"steps": 2}, keepBest={"metric": "eval/loss"})
    assert found == [(2, None), (4, 4.0), (6, None)]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_training_waits_for_a_save_or_does_not(
    job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    """The store takes nothing before the third step has begun. Whoever waits for it gets there after its patience."""
    begun, put = threading.Event(), PosixStore.put
    seen: list[bool] = []

    def slowly(self: PosixStore, key: str, *rest: Any, **options: Any) -> Any:
        if key.endswith("manifest.json"):
            seen.append(begun.wait(60 if asynchronous else 1))
        return put(self, key, *rest, **options)

    monkeypatch.setattr(PosixStore, "put", slowly)
    monkeypatch.setenv("EVERSTEP_ROOT", str(tmp_path))
    monkeypatch.setenv("EVERSTEP_POLICY", json.dumps({"interval": {"steps": 2}, "async": asynchronous}))
    mine = job()
    with mine.checkpointer(tmp_path, environment=read_environment()) as checkpointer:
        for step in checkpointer.steps(4):
            if step == 3:
                begun.set()
            mine.step()
    assert seen[0] is asynchronous
