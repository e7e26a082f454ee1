"""Where a worker group with a local tier began: the register's word on which local saves count."""

from __future__ import annotations

from pathlib import Path

import pytest

from everstep.catalog import Beginning, JobCatalog, Resume, open_store
from everstep.errors import FencedError
from tests.unit.catalog.saves import OWNER, save

LOCAL = "checkpoints/step_000000000013-000002-0123456789ab"


@pytest.fixture
def job(tmp_path: Path) -> JobCatalog:
    found = JobCatalog(open_store(str(tmp_path)))
    found.fence(OWNER)
    return found


def test_a_group_counts_from_when_it_begins_and_until_another_does(job: JobCatalog) -> None:
    first = job.claim(1, "u1", local=True)
    assert first.catalog.begun is None
    first.begin(None)
    first.begin(None)
    mine = Beginning(claim=first.id, epoch=2)
    assert job.require().begun == mine
    second = job.claim(1, "u1", local=True)
    third = job.claim(1, "u1", local=True)
    assert (second.catalog.begun, third.catalog.begun) == (mine, mine), "one that never began changes nothing"
    with pytest.raises(FencedError):
        second.begin(LOCAL)
    third.begin(LOCAL)
    save(third, 20)
    assert job.fence(OWNER).begun == Beginning(claim=third.id, epoch=4, local=LOCAL), "an attempt may have its nodes"


def test_a_group_without_a_local_tier_ends_the_line(job: JobCatalog) -> None:
    job.claim(1, "u1", local=True).begin(None)
    assert job.claim(1, "u1").catalog.begun is None
    assert job.claim(1, "u1", local=True).catalog.begun is None


def test_another_incarnation_of_the_name_ends_the_line(job: JobCatalog) -> None:
    job.claim(1, "u1", local=True).begin(None)
    assert job.fence(OWNER.model_copy(update={"uid": "u2"})).begun is None


@pytest.mark.parametrize("how", ["fresh", "older"])
def test_a_users_choice_of_where_to_begin_ends_the_line(tmp_path: Path, how: str) -> None:
    job = JobCatalog(open_store(str(tmp_path)))
    first = job.claim(local=True)
    first.begin(None)
    older = save(first, 10)
    save(first, 20)
    choice = Resume(fresh=True) if how == "fresh" else Resume(location=older.location)
    assert job.claim(resume=choice, local=True).catalog.begun is None
