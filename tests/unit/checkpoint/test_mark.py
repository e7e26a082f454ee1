"""How far a pod got, noted where the kubelet finds it whatever ends the container."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from everstep.catalog import open_store, read_heartbeat
from everstep.checkpoint.mark import StepMark
from everstep.checkpoint.termination import describe_sigterm, read_record, write_record
from everstep.failure import MARK_BYTES, FailureRecord, decode, decode_mark, encode, encode_mark, reached

from .conftest import Job

NOW = datetime(2026, 1, 2, tzinfo=UTC)
Jobs = Callable[..., Job]


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setenv("EVERSTEP_TERMINATION_LOG", str(path))
    return path


def test_a_mark_is_no_record_and_a_record_no_mark() -> None:
    record = encode(FailureRecord(message="m", step=7, time=NOW))
    assert (decode(encode_mark(78)), decode_mark(encode_mark(78)), reached(encode_mark(78))) == (None, 78, 78)
    assert (decode_mark(record), reached(record)) == (None, 7)
    assert len(encode_mark(0)) == len(encode_mark(10**12 - 1)) == MARK_BYTES


@pytest.mark.parametrize(
    "text", [None, "", "out of tea", "{}", '{"step": 7, "loss": 2}', '{"step": -7}', '{"step": "7"}']
)
def test_somebody_elses_message_tells_no_step(text: str | None) -> None:
    assert reached(text) is None


def test_each_step_takes_the_place_of_the_one_before(log: Path) -> None:
    mark = StepMark()
    assert mark.former is None
    for step in (998, 999, 1000):
        mark.set(step)
        assert (reached(log.read_bytes()), log.stat().st_size) == (step, MARK_BYTES)


def test_workers_that_are_started_again_find_how_far_the_former_ones_got(log: Path) -> None:
    StepMark().set(1042)
    again = StepMark()
    assert again.former == 1042
    again.set(999)
    assert reached(log.read_bytes()) == 999
    assert write_record(FailureRecord(message="x" * 500, step=1003, time=NOW))
    third = StepMark()
    assert third.former == 1003
    third.set(1000)
    assert decode_mark(log.read_bytes()) == 1000


def test_a_mark_never_takes_the_place_of_what_came_after_the_first(log: Path) -> None:
    mark = StepMark()
    mark.set(5)
    failed = FailureRecord(rank=1, exit_code=1, message="rank 1 fails first", step=6, time=NOW)
    assert write_record(failed)
    mark.set(6)
    assert read_record(log) == failed
    log.write_text("out of tea")
    StepMark().set(7)
    assert log.read_text() == "out of tea"


def test_a_step_does_not_wait_for_whoever_holds_the_file(log: Path) -> None:
    mark = StepMark()
    with log.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        mark.set(5)
    mark.set(6)
    assert reached(log.read_bytes()) == 6


def test_one_rank_of_a_pod_notes_its_steps(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    StepMark().set(5)
    assert log.read_bytes() == b""


def test_a_record_that_knows_no_step_gets_the_noted_one(log: Path) -> None:
    StepMark().set(77)
    assert write_record(describe_sigterm(None, "ended by SIGTERM"))
    found = read_record(log)
    assert found is not None
    assert (found.stopped, found.step) == (True, 77)
    assert write_record(FailureRecord(rank=1, signal="SIGKILL", time=NOW), replace=True)
    assert reached(log.read_bytes()) == 77
    assert write_record(FailureRecord(rank=1, signal="SIGKILL", time=NOW, restart=1))
    assert reached(log.read_bytes()) is None, "of another worker group"


@pytest.mark.slow
def test_a_run_that_is_killed_has_noted_its_last_step(tmp_path: Path, log: Path) -> None:
    script = (
        "import os, signal, torch\n"
        "from everstep import Checkpointer\n"
        f"with Checkpointer(model=torch.nn.Linear(2, 2), root={str(tmp_path / 'root')!r}, interval_steps=100) as c:\n"
        "    for step in c.steps(50):\n"
        "        if step == 8:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == -9
    assert decode_mark(log.read_bytes()) == 7


def test_the_heartbeat_tells_how_far_the_former_workers_got(job: Jobs, tmp_path: Path) -> None:
    root = tmp_path / "root"
    job().run(root, 9, stop_after=5)
    job(seed=3).run(root, 9)
    before, after = (read_heartbeat(open_store(str(root)), attempt) for attempt in (1, 2))
    assert isinstance(before, tuple)
    assert isinstance(after, tuple)
    assert (before[0].former_step, after[0].former_step) == (None, 4)
