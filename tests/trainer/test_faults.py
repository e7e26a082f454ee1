"""Ranks that fail, die or come too late, in the middle of a save."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from everstep.catalog import JobCatalog, open_store, read_heartbeat
from everstep.catalog.verify import verify_save

from . import gang
from .conftest import Root


def committed(root: Path) -> list[int]:
    return [entry.step for entry in JobCatalog(open_store(str(root))).require().live()]


def test_one_ranks_failed_upload_commits_nothing_and_training_goes_on(tiny: gang.Gang, tmp_path: Path) -> None:
    ended = gang.run(tmp_path, [gang.TINY, "shard-fails"], str(tmp_path / "root"))
    assert committed(tmp_path / "root") == [2, 6, 8]
    assert ended.losses() == tiny.losses()
    assert "step 4 was not saved: rank 1: the shard's bucket is on fire" in ended.log
    found = read_heartbeat(open_store(str(tmp_path / "root")), 1)
    assert isinstance(found, tuple)
    assert (found[0].saves_failed, found[0].phase) == (1, "finished")


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_that_dies_before_the_swap_leaves_the_step_before(
    tiny: gang.Gang, torn: gang.Gang, tmp_path: Path, ranks: int
) -> None:
    assert torn.record is not None
    assert (torn.record.rank, torn.record.signal, torn.record.exit_code) == (0, "SIGKILL", 137)
    assert committed(torn.folder / "root") == [2]
    root = tmp_path / "root"
    shutil.copytree(torn.folder / "root", root)
    again = gang.run(tmp_path, [gang.TINY, "plain"], str(root), ranks=ranks)
    assert f"saved by 2 ranks, now {ranks}" in again.log
    assert sorted(again.losses()) == [3, 4, 5, 6, 7, 8]
    if ranks == 2:
        assert again.losses() == {step: loss for step, loss in tiny.losses().items() if step > 2}
    assert committed(root) == [2, 4, 6, 8]


def test_a_rank_that_dies_in_a_shard_is_restarted_in_place_from_the_step_before(tmp_path: Path) -> None:
    root = tmp_path / "root"
    running = gang.start(tmp_path, [gang.TINY, "die-in-shard"], str(root), options=["--max-restarts=1"])
    assert running.wait() == 137  # it dies in the same place again, in a worker group that resumed step 2
    assert running.record is not None
    assert (running.record.rank, running.record.signal, running.record.exit_code) == (1, "SIGKILL", 137)
    assert running.log.count("resumed step 2") == 1
    assert committed(root) == [2]
    catalog = JobCatalog(open_store(str(root))).require()
    assert (catalog.attempt, catalog.epoch) == (2, 2)


@pytest.mark.parametrize(
    ("phase", "resumed"),
    [("copy", 2), ("shard", 2), ("metadata", 2), ("swap", 4)],
)
def test_a_rank_that_dies_in_any_phase_of_a_save_beside_training(
    tiny: gang.Gang, tmp_path: Path, phase: str, resumed: int
) -> None:
    scenario = {"copy": "die-in-copy", "metadata": "die-before-metadata"}.get(phase, f"die-after-{phase}")
    root = tmp_path / "root"
    ended = gang.run(tmp_path, [gang.TINY, scenario], str(root), options=["--max-restarts=1"])
    assert (tmp_path / "died").exists()
    assert f"resumed step {resumed} " in ended.log
    assert ended.losses() == tiny.losses()
    assert committed(root) == [2, 4, 6, 8]
    catalog = JobCatalog(open_store(str(root)))
    assert (catalog.require().attempt, catalog.require().epoch) == (2, 2)
    for entry in catalog.require().live():
        verify_save(catalog.store, catalog.manifest(entry))


def test_an_uploader_that_is_killed_costs_one_save_at_most(s3_root: Root, tiny: gang.Gang, tmp_path: Path) -> None:
    ended = gang.run(tmp_path, [gang.TINY, "uploader-dies"], s3_root.uri, environment=s3_root.environment)
    assert ended.losses() == tiny.losses()
    catalog = JobCatalog(s3_root.store())
    assert [entry.step for entry in catalog.require().live()][-3:] == [4, 6, 8]
    for entry in catalog.require().live():
        verify_save(catalog.store, catalog.manifest(entry))


def test_a_fenced_gang_commits_nothing_and_says_so(tmp_path: Path) -> None:
    root = tmp_path / "root"
    fenced = gang.start(tmp_path, [gang.TINY, "fenced"], str(root), options=["--max-restarts=3"])
    assert fenced.wait() == 76
    assert "fenced: " in fenced.log
    assert committed(root) in ([2], [2, 4])  # step 4 was on its way
    assert fenced.record is not None
    assert fenced.record.exception == "FencedError"


UP = "import os, time\nos.write(1, b'up\\n')\ntime.sleep(600)\n"
"""In one write: both ranks have the same standard output."""


def test_no_rank_outlives_its_agent(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UP)
    running = gang.start(tmp_path, ["script.py"], str(tmp_path / "root"))
    running.wait_for("up\nup")
    workers = running.workers()
    os.kill(running.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() and "Z" not in state_of(pid) for pid in workers):
        assert time.monotonic() < deadline, "a rank outlives its agent"
        time.sleep(0.05)


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_a_script_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import no_such_module\n")
    broken = gang.start(tmp_path, ["script.py"], str(tmp_path / "root"))
    assert broken.wait() == 1
    assert broken.record is not None
    assert broken.record.message == "No module named 'no_such_module'"
    assert "import no_such_module" in "".join(broken.record.traceback)
    assert "leaked" not in broken.log, "what is said is about the script"


def test_a_worker_killed_from_outside_is_the_cause(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UP)
    running = gang.start(tmp_path, ["script.py"], str(tmp_path / "root"))
    running.wait_for("up\nup")
    victim = running.workers()[0]
    os.kill(victim, signal.SIGKILL)
    assert running.wait(seconds=60) == 137
    assert running.record is not None
    assert running.record.signal == "SIGKILL"
