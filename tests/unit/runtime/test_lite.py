"""The torch-free trainer that the operator's tests trust: it resumes where it committed and knows when it is fenced."""

from __future__ import annotations

from pathlib import Path

from everstep.catalog import JobCatalog, Owner, open_store
from everstep.exits import FENCED
from tests.trainers.lite import Job, Options, Run, chain, options_from

OWNER = Owner(cluster="c", namespace="n", name="j", uid="u")
QUICK = Options(total_steps=25, seconds_per_step=0, save_every=10, heartbeat_seconds=0)


def run(tmp_path: Path, attempt: int, options: Options, uid: str = "u") -> tuple[int, Run]:
    process = Run(Job(str(tmp_path / "root"), attempt, uid, termination_log=tmp_path / f"log-{attempt}"), options)
    return process(), process


def test_a_crash_and_a_resume_end_where_an_uninterrupted_run_ends(tmp_path: Path) -> None:
    job = JobCatalog(open_store(str(tmp_path / "root")))
    job.fence(OWNER)
    options = Options(**{**vars(QUICK), "crash_step": 17, "crash_code": 3})
    code, first = run(tmp_path, 1, options)
    assert (code, first.step) == (3, 17)
    assert '"exit_code": 3' in (tmp_path / "log-1").read_text()
    job.fence(OWNER)
    code, second = run(tmp_path, 2, options)
    assert code == 0
    assert second.state == chain(25)
    assert [entry.step for entry in job.require().live()] == [10, 20, 25]


def test_an_older_attempt_is_fenced(tmp_path: Path) -> None:
    job = JobCatalog(open_store(str(tmp_path / "root")))
    job.fence(OWNER)
    job.fence(OWNER)
    assert run(tmp_path, 1, QUICK)[0] == FENCED
    assert run(tmp_path, 2, QUICK, uid="another")[0] == FENCED


def test_options_come_from_arguments_then_variables() -> None:
    options = options_from(["--total-steps", "7"], {"LITE_TOTAL_STEPS": "9", "LITE_CRASH_SILENTLY": "true"})
    assert options.total_steps == 7
    assert options.crash_silently
    assert options.save_every == Options().save_every
