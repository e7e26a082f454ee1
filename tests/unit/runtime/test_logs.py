"""Every log line about a job says so: from its pass, from threads and tasks begun there, after a pass that failed."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator

import pytest

from everstep_operator import logs
from everstep_operator.storage import Lanes

log = logging.getLogger("everstep_operator.test")


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    """The root logger as it was."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_lines_carry_namespace_job_and_attempt(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "INFO")
    log.info("before")
    with logs.about("ns", "job"):
        log.info("early")
        logs.at_attempt(3)
        log.info("later")
    log.info("after")
    before, early, later, after = lines(capsys)
    assert "job" not in before
    assert (early["namespace"], early["job"]) == ("ns", "job")
    assert "attempt" not in early
    assert (later["namespace"], later["job"], later["attempt"]) == ("ns", "job", 3)
    assert later["message"] == "later"
    assert "job" not in after
    assert "attempt" not in after


async def test_threads_and_tasks_inherit_what_they_are_about(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "INFO")
    lanes = Lanes(2)

    async def task() -> None:
        await asyncio.sleep(0)
        log.info("in a task")

    with logs.about("ns", "job", 2):
        await lanes.lane("http://s3.test").run(lambda: log.info("in a thread"), 5)
        running = asyncio.create_task(task())
    await running
    lanes.close()
    told = lines(capsys)
    assert [line["message"] for line in told] == ["in a thread", "in a task"]
    assert all((line["namespace"], line["job"], line["attempt"]) == ("ns", "job", 2) for line in told)


async def test_jobs_side_by_side_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "INFO")

    async def work(name: str, attempt: int) -> None:
        with logs.about("ns", name):
            logs.at_attempt(attempt)
            for _ in range(5):
                await asyncio.sleep(0)
                log.info("%s %d", name, attempt)

    await asyncio.gather(*(work(f"job-{number}", number) for number in range(1, 6)))
    told = lines(capsys)
    assert len(told) == 25
    assert all(line["message"] == f"{line['job']} {line['attempt']}" for line in told)


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("console", "INFO")
    with logs.about("ns", "job", 2):
        log.warning("told")
    assert capsys.readouterr().err.endswith("WARNING [ns/job attempt 2] told\n")


def test_a_message_of_several_lines_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "INFO")
    with logs.about("ns", "job"):
        try:
            raise ValueError("first\nsecond")
        except ValueError:
            log.exception("it failed:\nhow")
    (line,) = lines(capsys)
    assert line["message"] == "it failed:\nhow"
    assert "ValueError: first\nsecond" in str(line["exception"])
