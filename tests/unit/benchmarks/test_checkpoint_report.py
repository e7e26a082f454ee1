"""What the tables and verdicts of the checkpoint benchmark are made of."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import page
from benchmarks.checkpoint import report
from benchmarks.checkpoint.link import RATE

Json = dict[str, Any]
ABOUT: Json = {"kind": "about", "began": "2030-01-01T00:00:00+00:00", "cpus": 2, "cpu": "a CPU", "memory_gib": 4}
ABOUT |= {"run": "one", "torch": "2", "commit": "abc", "load_average": [1.0]}
SIZE = 2 << 30


def row(kind: str, peer: str, setting: str = "loopback", run: str = "one", **numbers: Any) -> Json:
    return {"run": run, "kind": kind, "peer": peer, "setting": setting, "load": 1.5, "bytes": SIZE, **numbers}


def save(peer: str, committed: float, setting: str = "sink", run: str = "one") -> Json:
    return row("save", peer, setting, run, committed=committed, boundary=0.01, blocked=0.1, cpu=1.0)


def verdict(rows: list[Json], what: str) -> str:
    return next(goal.verdict for goal in report.goals([ABOUT, *rows]) if goal.what.startswith(what))


def test_a_median_with_the_least_and_the_most() -> None:
    assert page.spread([3.0, 1.0, 2.5]) == "2.50 (1.00 to 3.00)"
    assert page.spread([0.0123], 3) == "0.012 (0.012 to 0.012)"
    assert page.spread([]) == "–"


def test_numbers_are_for_each_byte_of_the_state() -> None:
    assert report.cpu(row("save", "everstep", cpu=3.0)) == 1.5
    assert report.extra(row("memory", "everstep", before=SIZE, peak=4 * SIZE)) == 3.0
    assert report.fetched(row("restore", "everstep", received=SIZE * 1.25)) == 1.25
    assert report.lost({"with": 3.0, "without": 2.5}) == 0.5


def test_the_last_commit_of_each_setting_and_peer_counts_with_all_its_runs() -> None:
    rows = [
        ABOUT,
        save("everstep", 9.0),
        save(report.SYNC, 8.0),
        {**ABOUT, "run": "two", "commit": "def"},
        save("everstep", 1.0, run="two"),
        {**ABOUT, "run": "three", "commit": "def"},
        save("everstep", 2.0, run="three"),
    ]
    made = report.page(rows)
    assert "1.50 (1.00 to 2.00)" in made
    assert "8.00 (8.00 to 8.00)" in made
    assert "9.00" not in made
    assert "everstep at abc, def" in made


def test_an_error_does_not_take_the_place_of_what_was_measured() -> None:
    failed = {"run": "two", "kind": "error", "peer": "everstep", "setting": "sink", "error": "no"}
    rows = [ABOUT, save("everstep", 1.0), {**ABOUT, "run": "two", "commit": "def"}, failed]
    assert report.latest(rows) == rows[:2]


@pytest.mark.parametrize(("ours", "expected"), [(1.9, "met"), (2.1, "**missed**")])
def test_a_ratio_of_medians_is_held_against_its_limit(ours: float, expected: str) -> None:
    rows = [save("everstep", ours), *(save(report.SYNC, each) for each in (1.0, 4.0, 90.0))]
    assert verdict(rows, "until committed (sink): 0.5 of DCP sync") == expected


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    rows = [save("everstep", 1.0)]
    assert verdict(rows, "until committed (sink): 0.5 of DCP sync") == "not measured"
    assert verdict(rows, "peak extra memory") == "not measured"


def test_a_loss_that_noise_made_negative_is_no_measure() -> None:
    windows: Json = {"without": 2.0, "blocked": 0.01, "steps": 3}
    ours, theirs = row("train", "everstep") | windows | {"with": 2.1}, row("train", report.SYNC) | windows
    assert verdict([ours, theirs | {"with": 1.9}], "training time lost a checkpoint: 0.5 of DCP sync") == "not measured"
    assert verdict([ours, theirs | {"with": 3.0}], "training time lost a checkpoint: 0.5 of DCP sync") == "met"


def test_the_link_sets_the_goal_for_what_goes_over_it() -> None:
    line = SIZE / (0.95 * RATE)
    assert verdict([save("everstep", line + 0.13, "shaped")], "until committed (shaped)") == "met"
    assert verdict([save("everstep", line + 0.15, "shaped")], "until committed (shaped)") == "**missed**"
    found = row("restore", "everstep", "shaped", committed=line - 0.1, received=SIZE, cpu=1.0)
    assert verdict([found | {"from": 2, "to": 2}], "restore (shaped)") == "met"
    assert verdict([found | {"from": 2, "to": 1}], "restore (shaped)") == "not measured"
