"""What names a run's requests, and what makes tables of results."""

from __future__ import annotations

from typing import Any

from benchmarks.survival.report import KINDS, kind_of, tables
from tests.survival import matrix
from tests.survival.everstep_engine import Requests

ROOT = "/bucket/jobs/ns/job"
SAVE = f"{ROOT}/checkpoints/step_000000000004-000001-0123456789ab"


def test_requests_are_named_by_what_they_are_of_a_run() -> None:
    read = Requests()

    def phase(method: str, path: str, body: bytes = b"") -> tuple[Any, ...]:
        seen = read(method, path, body)
        assert seen is not None
        return seen.phase, seen.rank, seen.nth

    assert phase("PUT", f"{ROOT}/catalog.json?x-id=PutObject") == (None, 0, 1)  # the claim
    assert phase("POST", f"{SAVE}/__1_0.distcp?uploads") == ("upload begun", 1, 1)
    assert phase("PUT", f"{SAVE}/__1_0.distcp?uploadId=a/b&partNumber=1") == ("part stored", 1, 1)
    assert phase("PUT", f"{SAVE}/__1_0.distcp?uploadId=a/b&partNumber=2") == ("part stored", 1, 2)
    assert phase("POST", f"{SAVE}/__1_0.distcp?uploadId=a/b") == ("upload completing", 1, 1)
    assert phase("PUT", f"{SAVE}/.metadata") == ("metadata", 0, 1)
    assert phase("PUT", f"{SAVE}/manifest.json?x-id=PutObject") == ("manifest", 0, 1)
    assert phase("PUT", f"{ROOT}/catalog.json") == ("swap sent", 0, 1)
    assert phase("PUT", f"{SAVE}/COMMITTED") == ("mark", 0, 1)
    gone = b"<Key>jobs/ns/job/checkpoints/step_000000000002-000001-0123456789ab/COMMITTED</Key>"
    assert [phase("POST", "/bucket?delete", gone)[::2] for _ in range(2)] == [("removal", 1), ("removal", 2)]
    assert phase("GET", f"{SAVE}/__1_0.distcp?x-id=GetObject") == ("restore", None, 1)
    assert phase("PUT", f"{SAVE.replace('04-', '06-')}/.metadata")[0] is None


def test_every_case_is_of_one_kind_and_quick_cases_are_of_the_matrix() -> None:
    cases = matrix.whole()
    assert len(set(cases)) == len(cases)
    assert {kind_of(case.fault) for case in cases} == set(KINDS)
    assert {*matrix.QUICK, matrix.LAUNCHED} <= set(cases)
    assert sorted(case.name for case in matrix.shuffled(cases, 3)) == sorted(case.name for case in cases)


def test_the_tables_count_what_passed_and_say_what_was_wrong() -> None:
    about = {"began": "2026-01-01T00:00", "cpus": 2, "cpu": "x", "load_average": [3.0], "torch": "1", "commit": "abc"}

    def verdict(engine: str, fault: str, *problems: str, hung: bool = False) -> dict[str, Any]:
        return {
            "engine": engine,
            "phase": "manifest",
            "fault": fault,
            "of": 3,
            "problems": list(problems),
            "about": about,
            "interrupted": hung,
            "hung": hung,
        }

    one = [verdict("everstep", "503"), verdict("everstep", "kill rank 0")]
    other = [verdict("peer", "503", hung=True), verdict("peer", "kill rank 0", "step 4 is\ntorn | badly")]
    text = tables([one, other])
    assert "| **all** | **2 of 2** | **1 of 2** |" in text
    assert "| manifest | 2 of 2 | 1 of 2 |" in text
    assert "| cases of the matrix that were tried | 2 of 3 | 2 of 3 |" in text
    assert "| runs that storage alone ended | 0 of 1 | 1 of 1, 1 of them by hanging |" in text
    assert "| peer | manifest | kill rank 0 | step 4 is torn / badly |" in text
