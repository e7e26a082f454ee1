"""The local tier of real gangs: a rank is killed, and the group that is started in its place goes on from the nodes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from everstep.catalog import JobCatalog, open_store, read_heartbeat

from . import gang


def resumed(ended: gang.Gang) -> list[tuple[int, bool]]:
    """Step, and whether it came from the nodes, of each start that resumed."""
    found = re.findall(r"resumed step (\d+) from \S+( of the local tier)? in", ended.log)
    return [(int(step), bool(local)) for step, local in found]


@pytest.mark.parametrize(
    ("scenario", "replicas", "expected"),
    [
        ("death", 0, {(5, True), (6, True)}),
        ("exchange", 0, {(5, True), (6, True)}),
        ("unfinished", 0, {(4, True)}),
        ("damage", 0, {(4, False)}),
        ("loss", 0, {(4, False)}),
        ("damage", 1, {(6, True)}),
        ("loss", 1, {(6, True)}),
    ],
)
def test_a_killed_rank_costs_the_steps_since_the_last_save_that_all_ranks_have(
    tiny: gang.Gang, tmp_path: Path, scenario: str, replicas: int, expected: set[tuple[int, bool]]
) -> None:
    """The save of the step before the last may not be whole yet when the rank dies."""
    root = tmp_path / "root"
    environment = {"REPLICAS": str(replicas)}
    command = [gang.TINY, f"local-{scenario}"]
    ended = gang.run(tmp_path, command, str(root), options=["--max-restarts=1"], environment=environment)
    assert (tmp_path / "died").exists()
    (start,) = resumed(ended)
    assert start in expected
    assert ended.losses() == tiny.losses()
    catalog = JobCatalog(open_store(str(root))).require()
    assert [entry.step for entry in catalog.live()] == [4, 8]
    assert (catalog.attempt, catalog.epoch) == (2, 2)
    assert catalog.begun is not None
    assert (catalog.begun.local is not None) == start[1]
    assert not list(tmp_path.glob("node-*/*")), "nothing is left of a run that has ended"


def test_the_ranks_of_a_node_share_its_folder_and_another_number_of_ranks_gets_it_all(
    tiny: gang.Gang, tmp_path: Path
) -> None:
    """A gang that dies as a whole leaves its node; three ranks make the state of two their own."""
    root = tmp_path / "root"
    first = gang.start(tmp_path, [gang.TINY, "local-death"], str(root), environment={"NODES": "1"})
    assert first.wait() == 137
    again = gang.run(tmp_path / "again", [gang.TINY, "plain"], str(root), ranks=3, environment=local(tmp_path))
    ((step, from_node),) = resumed(again)
    assert (step in (5, 6), from_node) == (True, True)
    assert "saved by 2 ranks, now 3" in again.log
    assert sorted(again.losses()) == list(range(step + 1, 9))
    found = read_heartbeat(open_store(str(root)), 2)
    assert isinstance(found, tuple)
    assert (found[0].resumed_step, found[0].local_saves_failed) == (step, 0)


def local(folder: Path) -> dict[str, str]:
    policy = '{"interval": {"steps": 2}, "local": {"interval": {"steps": 1}}}'
    return {"EVERSTEP_LOCAL_PATH": str(folder / "node-0"), "EVERSTEP_POLICY": policy}
