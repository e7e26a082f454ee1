"""When ranks are forked, and when they are started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from everstep.launch import warm


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (warm.SWITCH, warm.THREADS, warm.PRELOAD, "PET_NPROC_PER_NODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("device", "by_itself"),
    [("null", True), ("nvidia0", False), ("kfd", False), ("accel3", False), ("dri/renderD128", False)],
)
def test_not_by_itself_where_there_is_an_accelerator(
    device: str, by_itself: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
    assert warm.wanted(tmp_path) is by_itself
    monkeypatch.setenv(warm.SWITCH, "1")
    assert warm.wanted(tmp_path)
    monkeypatch.setenv(warm.SWITCH, "0")
    assert not warm.wanted(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "variable", "threads"),
    [
        (["--nproc-per-node=2", "train.py"], None, "1"),
        (["--nproc_per_node", "8", "-m", "train", "--nproc", "x"], None, "1"),
        (["train.py"], "4", "1"),
        (["--nproc-per-node=1", "train.py"], "4", None),
        (["train.py"], None, None),
        (["--nproc-per-node=auto", "train.py"], None, None),
        (["train.py", "--nproc-per-node"], None, None),
        (["train.py", "--nproc-per-node=4"], None, None),
        (["-m", "train", "--nproc-per-node=4"], "1", None),
    ],
)
def test_libraries_are_told_before_they_are_loaded_what_torchrun_would_tell_the_ranks(
    arguments: list[str], variable: str | None, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(warm.SWITCH, "1")
    monkeypatch.setenv(warm.THREADS, "7")
    warm.prepare(arguments)
    assert os.environ[warm.THREADS] == "7"
    monkeypatch.delenv(warm.THREADS)
    if variable is not None:
        monkeypatch.setenv("PET_NPROC_PER_NODE", variable)
    warm.prepare(arguments)
    assert os.environ.get(warm.THREADS) == threads


def test_a_rank_is_forked_where_torchruns_own_variables_differ_alone() -> None:
    loaded = {"PATH": "/bin", "OMP_NUM_THREADS": "1", "LOCAL_RANK": "3"}
    torchruns = {
        "LOCAL_RANK": "0",
        "RANK": "1",
        "MASTER_ADDR": "a",
        "TORCHELASTIC_RUN_ID": "x",
        "EVERSTEP_STACKS": "/x",
    }
    assert warm.is_same(loaded, {**loaded, **torchruns})
    for other in ({"OMP_NUM_THREADS": "2"}, {"LD_PRELOAD": "x"}, {"CUDA_VISIBLE_DEVICES": "1"}):
        assert not warm.is_same(loaded, {**loaded, **other})
    assert not warm.is_same(loaded, {"PATH": "/bin"})
