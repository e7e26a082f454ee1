"""Calls that cannot work say so at once, and name the way out."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from everstep.catalog.store.posix import PosixStore
from everstep.errors import CheckpointError, InvalidOperationError, StorageUnavailableError

from .conftest import Job, steps_of

Jobs = Callable[..., Job]


def test_a_rank_of_several_without_a_process_group(job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidOperationError, match="init_process_group"):
        job().checkpointer(tmp_path)


@pytest.mark.parametrize("interval", [{"interval_steps": 0}, {"interval_seconds": -1.0}])
def test_an_interval_of_nothing(job: Jobs, tmp_path: Path, interval: dict[str, Any]) -> None:
    with pytest.raises(InvalidOperationError, match=f"{next(iter(interval))}="):
        job().checkpointer(tmp_path, **interval)


def test_training_on_after_loading_an_older_step(job: Jobs, tmp_path: Path) -> None:
    job().run(tmp_path, 4)
    mine = job().checkpointer(tmp_path)
    mine.load(2)
    with pytest.raises(InvalidOperationError, match="pass resume_step=2"):
        next(iter(mine.steps(8)))
    newest = job().checkpointer(tmp_path)
    newest.load(4)
    assert next(iter(newest.steps(8))) == 5
    newest.close()


def test_metrics_that_are_no_numbers(job: Jobs, tmp_path: Path) -> None:
    with job().checkpointer(tmp_path) as checkpointer:
        checkpointer.report()
        checkpointer.report(loss=torch.ones(1, requires_grad=True), rate=1)
        with pytest.raises(InvalidOperationError, match="loss is a tensor of 2 elements"):
            checkpointer.report(loss=torch.ones(2))
        with pytest.raises(InvalidOperationError, match="loss is 'low'"):
            checkpointer.report(loss="low")


def test_a_metric_keeps_neither_its_graph_nor_later_changes(job: Jobs, tmp_path: Path) -> None:
    running = torch.zeros(1, requires_grad=True) + 2
    with job().checkpointer(tmp_path) as checkpointer:
        checkpointer.begin(1)
        checkpointer.report(loss=running, tokens=7)
        assert not any(value.requires_grad for value in checkpointer._progress._values.values())
        running.detach().zero_()
        checkpointer.abort()
        checkpointer.begin(2)
        checkpointer.save_state()
        committed = checkpointer.commit()
    assert committed.metrics == {"loss": 2.0}
    assert committed.progress is not None
    assert committed.progress.tokens == 7


def test_custom_metadata_is_json(job: Jobs, tmp_path: Path) -> None:
    with job().checkpointer(tmp_path) as checkpointer:
        checkpointer.begin(1)
        with pytest.raises(InvalidOperationError, match="note: kept as JSON"):
            checkpointer.save_state(note=object())


class Unkeepable:
    def state_dict(self) -> dict[str, Any]:
        return {"when": object()}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def test_state_that_cannot_be_kept_ends_the_run_at_its_first_save(job: Jobs, tmp_path: Path) -> None:
    seen: list[int] = []
    with (
        pytest.raises(InvalidOperationError, match=r"when: a builtins\.object cannot be kept"),
        job().checkpointer(tmp_path, interval_steps=2, odd=Unkeepable()) as found,
    ):
        seen.extend(found.steps(100))
    assert seen == [1, 2]


def test_early_stopping_saves_the_step_after_and_ends(job: Jobs, tmp_path: Path) -> None:
    mine = job()
    with mine.checkpointer(tmp_path, interval_steps=100) as checkpointer:
        for step in checkpointer.steps(50):
            mine.step()
            if step == 3:
                checkpointer.finish()
    assert steps_of(tmp_path) == [4]


@pytest.mark.parametrize("total", [4, 2])
def test_a_run_that_is_done_does_nothing(job: Jobs, tmp_path: Path, total: int) -> None:
    job().run(tmp_path, 4)
    assert job().run(tmp_path, total) == []
    assert steps_of(tmp_path) == [2, 4]


def test_a_longer_run_goes_on(job: Jobs, tmp_path: Path) -> None:
    whole = job().run(tmp_path / "whole", 6, every=100)
    job().run(tmp_path / "parts", 4, every=100)
    assert job().run(tmp_path / "parts", 6, every=100) == whole[4:]


def test_sigterm_in_a_loop_of_ones_own(job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "termination"
    monkeypatch.setenv("EVERSTEP_TERMINATION_LOG", str(record))
    before = signal.getsignal(signal.SIGTERM)

    def train() -> None:
        with job().checkpointer(tmp_path / "root") as checkpointer:
            checkpointer.load_latest()
            assert signal.getsignal(signal.SIGTERM) is before  # nothing looks for it yet: it must not be swallowed
            for step in range(1, 50):
                stopping = checkpointer.stopping()
                if stopping:
                    checkpointer.begin(step)
                    checkpointer.save_state()
                    checkpointer.commit()
                    raise SystemExit(143)
                if step == 3:
                    os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        train()
    assert steps_of(tmp_path / "root") == [4]
    assert '"SIGTERM"' in record.read_text()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_final_commit_whose_answer_was_lost(job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everstep.checkpoint.checkpointer.FINAL_SAVE_PAUSE", 0.0)
    mine = job()
    real = PosixStore.swap_register
    lost: list[str] = []

    def swap(store: PosixStore, key: str, body: bytes, token: str | None) -> str:
        found = real(store, key, body, token)
        if b'"step":4' in body and not lost:
            lost.append(found)
            raise StorageUnavailableError("no answer, and none to the questions after it")
        return found

    monkeypatch.setattr(PosixStore, "swap_register", swap)
    with mine.checkpointer(tmp_path, interval_steps=100) as checkpointer:
        for _ in checkpointer.steps(4):
            mine.step()
    assert lost
    assert steps_of(tmp_path) == [4]


class Broken:
    def state_dict(self) -> dict[str, int]:
        raise KeyError("boom")

    def load_state_dict(self, state: dict[str, int]) -> None: ...


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("kind", ["object", "meta", "sparse", "quantized"])
def test_state_that_can_never_be_saved_ends_the_run_and_is_named(
    job: Jobs, tmp_path: Path, kind: str, asynchronous: bool
) -> None:
    run = job()
    others: dict[str, Any] = {}
    odd, named = torch.eye(4), ""
    if kind == "object":
        others["tracker"] = Broken()
        named = r"tracker: Broken.state_dict\(\) raised KeyError: 'boom'"
    elif kind == "meta":
        odd, named = odd.to("meta"), "0.odd is on the meta device: only dense"
    elif kind == "sparse":
        odd, named = odd.to_sparse(), "0.odd is torch.sparse_coo: only dense"
    else:
        odd, named = torch.quantize_per_tensor(odd, 0.1, 0, torch.qint8), "0.odd is quantized: only dense"
    if kind != "object":
        run.model[0].register_buffer("odd", odd)
    done: list[int] = []

    def train() -> None:
        with run.checkpointer(tmp_path, interval_steps=2, asynchronous=asynchronous, **others) as checkpointer:
            for step in checkpointer.steps(8):
                run.step()
                done.append(step)

    with pytest.raises(CheckpointError, match=named):
        train()
    assert done == ([1, 2, 3, 4] if kind == "object" else [1, 2]), "of what an object does, nobody knows at first"


def test_an_object_that_fails_later_costs_the_saves_in_which_it_does(job: Jobs, tmp_path: Path) -> None:
    class Moody(Broken):
        def state_dict(self) -> dict[str, int]:
            return {} if checkpointer.step != 4 else super().state_dict()

    run = job()
    checkpointer = run.checkpointer(tmp_path, interval_steps=2, tracker=Moody())
    with checkpointer:
        for _ in checkpointer.steps(6):
            run.step()
    assert steps_of(tmp_path) == [2, 6]
