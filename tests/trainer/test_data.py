"""Data positions through the real Checkpointer and recipe, on real torchrun gangs with data workers."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from everstep.catalog import JobCatalog, open_store

from . import gang
from .test_recipe import newest, stock_load

pytestmark = pytest.mark.timeout(900)  # three gangs, one after the other

SCRIPT = str(Path(__file__).parent / "samples.py")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> gang.Gang:
    """40 steps of the stream on 2 ranks with 2 workers each, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return gang.run(folder, [SCRIPT, "stream", "40", "2"], str(folder / "root"))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> gang.Gang:
    folder = tmp_path_factory.mktemp("half")
    return gang.run(folder, [SCRIPT, "stream", "20", "2"], str(folder / "root"))


def rest_of(gang_: gang.Gang) -> dict[int, list[int]]:
    return {step: samples for step, samples in gang_.samples().items() if step > 20}


def test_twenty_and_twenty_steps_are_forty(whole: gang.Gang, half: gang.Gang, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(half.folder / "root", root)
    again = gang.run(tmp_path, [SCRIPT, "stream", "40", "2"], str(root))
    assert sorted(again.losses()) == list(range(21, 41))
    assert {**half.losses(), **again.losses()} == whole.losses()
    ours, theirs = stock_load(newest(root)), stock_load(newest(whole.folder / "root"))
    assert len(ours) > 8
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_one_rank_goes_on_sample_for_sample_and_two_again(whole: gang.Gang, half: gang.Gang, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(half.folder / "root", root)
    alone = gang.run(tmp_path / "alone", [SCRIPT, "stream", "30", "1"], str(root), ranks=1)
    assert "saved by 2 ranks, now 1" in alone.log
    pair = gang.run(tmp_path / "pair", [SCRIPT, "stream", "40", "0"], str(root))
    assert "saved by 1 ranks, now 2" in pair.log
    assert {**alone.samples(), **pair.samples()} == rest_of(whole)


def test_sigterm_leaves_the_workers_alone_until_the_step_is_saved(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    running = gang.start(tmp_path, [SCRIPT, "stream", "100000", "2"], root)
    running.wait_for('"step": 3,')
    running.process.send_signal(signal.SIGTERM)
    assert running.wait(seconds=60) == 143, running.log[-3000:]
    latest = JobCatalog(open_store(root)).require().latest()
    assert latest is not None
    assert latest.step == max(running.losses())


def test_torchdatas_loader_resumes_on_as_many_ranks_and_says_so_elsewhere(tmp_path: Path) -> None:
    straight = gang.run(tmp_path / "straight", [SCRIPT, "torchdata", "16", "2"], str(tmp_path / "other"))
    root = tmp_path / "root"
    gang.run(tmp_path / "first", [SCRIPT, "torchdata", "10", "2"], str(root))
    shutil.copytree(root, tmp_path / "copy")
    again = gang.run(tmp_path / "again", [SCRIPT, "torchdata", "16", "2"], str(root))
    assert again.losses() == {step: loss for step, loss in straight.losses().items() if step > 10}
    misfit = gang.start(tmp_path / "misfit", [SCRIPT, "torchdata", "16", "2"], str(tmp_path / "copy"), ranks=1)
    assert misfit.wait() == 78
    assert misfit.record is not None
    assert "differed between the 2 ranks that saved it, so it does not fit 1 ranks" in misfit.record.message


def test_the_recipe_resumes_bit_for_bit_with_workers(straight: gang.Gang, tmp_path: Path) -> None:
    command = [*gang.RECIPE, "--data.workers", "2"]
    root = str(tmp_path / "root")
    broken = gang.start(tmp_path / "first", command, root)
    broken.wait_for('"step": 7,')
    broken.kill()
    again = gang.run(tmp_path / "second", command, root)
    first = min(again.losses())
    assert first > 5
    assert again.losses() == {step: loss for step, loss in straight.losses().items() if step >= first}
    assert again.samples() == {step: samples for step, samples in straight.samples().items() if step >= first}


def test_another_text_between_attempts_is_refused_or_begun_anew(tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("one two three " * 500)
    root = str(tmp_path / "root")
    command = ["-m", "everstep.train", "--data.source", str(text), "--steps"]
    gang.run(tmp_path / "first", [*command, "4"], root, ranks=1)
    text.write_text("one two four " * 600)
    misfit = gang.start(tmp_path / "second", [*command, "6"], root, ranks=1)
    assert misfit.wait() == 78
    assert misfit.record is not None
    assert "data: the checkpoint was made with other data" in misfit.record.message
    anew = gang.run(tmp_path / "third", [*command, "6", "--data.on_change", "warn"], root, ranks=1)
    assert "epoch 1 begins with what is there now" in anew.log
    assert sorted(anew.losses()) == [5, 6]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--global_batch", "7"], "global_batch: 7 samples do not divide among 2 ranks; use 6 or 8"),
        (
            ["--global_batch", "4000", "--data.max_bytes", "20000"],
            "global_batch: 4000 samples a step, but the text has",
        ),
        (["--data.source", "nowhere"], "data.source: nowhere does not exist"),
    ],
)
def test_data_that_cannot_work_ends_at_once(tmp_path: Path, flags: list[str], message: str) -> None:
    command = ["-m", "everstep.train", *flags]
    misfit = gang.start(tmp_path, command, str(tmp_path / "root"), options=["--max-restarts=3"])
    assert misfit.wait() == 78
    assert misfit.record is not None
    assert message in misfit.record.message
    assert not os.path.exists(tmp_path / "root")
