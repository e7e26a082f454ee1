"""Who was taken over commits nothing, and says so."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from everstep.catalog import JobCatalog, Owner, open_store
from everstep.checkpoint.environment import JobEnvironment
from everstep.errors import (
    FencedError,
)

from .conftest import Job, steps_of

Jobs = Callable[..., Job]


def test_a_zombie_commits_nothing(job: Jobs, tmp_path: Path) -> None:
    zombie, heir = job(), job()
    old = zombie.checkpointer(tmp_path)
    old.load_latest()
    old.begin(1)
    old.save_state()
    with heir.checkpointer(tmp_path) as new:
        assert new.load_latest() is None
        with pytest.raises(FencedError, match="fenced"):
            old.commit()
        new.begin(2)
        new.save_state()
        new.commit()
    old.close()
    assert steps_of(tmp_path) == [2]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_fenced_within_the_loop_ends_with_its_own_code(
    job: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str], asynchronous: bool
) -> None:
    mine = job()

    def train() -> None:
        with mine.checkpointer(tmp_path, script=True, interval_steps=2, asynchronous=asynchronous) as checkpointer:
            for step in checkpointer.steps(9):
                mine.step()
                if step == 3:
                    JobCatalog(checkpointer.store).claim()

    with pytest.raises(SystemExit) as end:
        train()
    assert end.value.code == 76
    assert capsys.readouterr().err.startswith("fenced: ")
    assert steps_of(tmp_path) in ([2], [] if asynchronous else [2])


def test_a_group_whose_peers_are_gone_says_that_it_was_fenced(
    job: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(rival: bool) -> None:
        with job().checkpointer(tmp_path, script=True) as checkpointer:
            for _ in checkpointer.steps(9):
                if rival:
                    JobCatalog(checkpointer.store).claim()
                raise RuntimeError("Connection closed by peer")

    with pytest.raises(RuntimeError, match="closed by peer"):
        train(rival=False)
    assert "fenced" not in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        train(rival=True)
    assert end.value.code == 76
    assert "fenced: " in capsys.readouterr().err


def test_a_group_that_does_not_save_hears_of_its_fence(
    job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everstep.checkpoint.heartbeat.FENCE_CHECK_SECONDS", 0.0)

    def train() -> None:
        with job().checkpointer(tmp_path, script=True, interval_steps=10**9, heartbeat_seconds=0.02) as checkpointer:
            for step in checkpointer.steps(10**6):
                if step == 3:
                    JobCatalog(checkpointer.store).claim()
                time.sleep(0.001)

    with pytest.raises(SystemExit) as end:
        train()
    assert end.value.code == 76


def test_an_attempt_claims_only_what_the_operator_fenced(job: Jobs, tmp_path: Path) -> None:
    owner = Owner(cluster="c", namespace="ns", name="job", uid="u1")
    catalog = JobCatalog(open_store(str(tmp_path)))
    for _ in range(2):
        catalog.fence(owner)
    for attempt, uid in ((1, "u1"), (2, "u0")):
        environment = JobEnvironment(root=str(tmp_path), attempt=attempt, job_uid=uid)
        with pytest.raises(FencedError):
            job().checkpointer(tmp_path, environment=environment).load_latest()
    environment = JobEnvironment(root=str(tmp_path), attempt=2, job_uid="u1")
    job().run(tmp_path, 2, environment=environment)
    assert [(e.step, e.attempt) for e in catalog.require().live()] == [(2, 2)]
