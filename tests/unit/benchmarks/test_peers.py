"""When a gang counts as back, and what the page makes of the times."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.recovery.peers import report
from benchmarks.recovery.peers.gangs import EverstepGang, Gang, JobGang
from tests.support.followers import Pod

ABOUT = {"began": "2030-01-01T00:00:00+00:00", "cpus": 2, "cpu": "a CPU", "memory_gib": 4}
ABOUT |= {"kubernetes": "v1", "jobset": "v0", "commit": "abc"}


def pod(uid: str, index: int, **stamps: float) -> Pod:
    return Pod(uid, uid, 0, index, {}, stamps={"added": 1.0, **stamps})


def gang(kind: type[Gang], *pods: Pod) -> Gang:
    made = kind(cast(Any, None), "image", 2, False)
    made.followers = cast(Any, SimpleNamespace(pods={each.uid: each for each in pods}))
    return made


OLD = [pod("a", 0, running=2.0), pod("b", 1, running=2.0)]


def test_a_gang_is_back_when_all_its_pods_are_new_and_run() -> None:
    lost = pod("a", 0, running=2.0, ended=3.0)
    first, second = pod("c", 0, running=4.0), pod("d", 1, running=5.0)
    assert gang(EverstepGang, lost, OLD[1], first).back(OLD, OLD[0]) is None
    assert gang(EverstepGang, lost, OLD[1], first, pod("d", 1)).back(OLD, OLD[0]) is None
    assert gang(EverstepGang, lost, OLD[1], first, second).back(OLD, OLD[0]) == [first, second]


def test_a_job_is_back_with_the_lost_pods_successor() -> None:
    lost = pod("a", 0, running=2.0, deleting=3.0)
    assert gang(JobGang, lost, OLD[1]).back(OLD, OLD[0]) is None
    assert gang(JobGang, lost, OLD[1], pod("c", 0)).back(OLD, OLD[0]) is None
    fresh = pod("c", 0, running=4.0)
    assert gang(JobGang, lost, OLD[1], fresh).back(OLD, OLD[0]) == [fresh]


@pytest.mark.parametrize("stamp", ["ended", "deleting", "deleted"])
def test_a_pod_that_goes_is_not_live(stamp: str) -> None:
    going = pod("a", 0, running=2.0)
    going.stamps[stamp] = 3.0
    assert gang(EverstepGang, going, OLD[1]).live() == [OLD[1]]


def result(kind: str, trial: int, running: float, setting: str = "2 sleepers") -> report.Json:
    times = {"created": 1.0, "running": running, "load_average": 1.5}
    return {"setting": setting, "kind": kind, "fault": "delete-pod", "trial": trial, **times}


def test_a_share_is_taken_within_each_round() -> None:
    own = [result("everstep", 0, 1.0), result("everstep", 1, 2.0), result("everstep", 2, 9.0)]
    assert report.share(own, [result("JobSet", 1, 2.0), result("JobSet", 0, 4.0)]) == "**0.62** (0.25–1.00)"
    assert report.share(own, []) == "–"


def test_each_setting_is_shown_as_it_was_measured_last_with_everstep_first() -> None:
    early = [result("JobSet", 0, 8.0), result("everstep", 0, 2.0), result("everstep", 0, 3.0, "8 sleepers")]
    late = [result("JobSet", 0, 4.0), result("everstep", 0, 1.0)]
    made = report.tables({"runs": [{"about": ABOUT, "results": early}, {"about": ABOUT, "results": late}]})
    old, new = made.split("Seconds since the fault")[1:]
    assert "| 8 sleepers | forced deletion of a pod | everstep | 1 |" in old
    assert "2 sleepers" not in old
    assert new.index("| everstep |") < new.index("| JobSet |")
    assert "**0.25** (0.25–0.25)" in new
