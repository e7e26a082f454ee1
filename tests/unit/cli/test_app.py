from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from everstep.catalog import JobCatalog, open_store
from everstep.cli import app as app_module
from everstep.errors import CheckpointError
from tests.unit.catalog.saves import save

runner = CliRunner()


@pytest.fixture
def root(tmp_path: Path) -> str:
    job = JobCatalog(open_store(str(tmp_path / "runs" / "ns" / "job")))
    claimed = job.claim()
    for step in (10, 20):
        save(claimed, step, score=1 / step)
    job.store.put(claimed.new_location(30).key("__0_0.distcp"), b"x")
    return job.store.uri


def run(*arguments: str) -> str:
    result = runner.invoke(app_module.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_ls_finds_runs_below_a_place(root: str, tmp_path: Path) -> None:
    data = json.loads(run("ls", str(tmp_path / "runs"), "-o", "json"))
    assert [r["uri"] for r in data["runs"]] == [root]
    assert [(c["step"], c["status"]) for c in data["runs"][0]["checkpoints"]] == [(10, "complete"), (20, "complete")]
    assert data["runs"][0]["latest"]["step"] == 20


def test_ls_shows_partial_saves_when_asked(root: str) -> None:
    data = json.loads(run("ls", root, "--partial", "-o", "json"))
    assert [(c["step"], c["status"]) for c in data["runs"][0]["checkpoints"]][-1] == (30, "partial")
    assert "Grand total: 1 run(s), 3 checkpoint(s)" in run("ls", root, "--partial")


def test_show_verify_pin(root: str) -> None:
    assert json.loads(run("show", root, "--step", "10", "-o", "json"))["manifest"]["world_size"] == 1
    assert "all right" in run("verify", root)
    run("pin", root, "--step", "10")
    assert JobCatalog(open_store(root)).require().live()[0].pinned


def test_a_flipped_byte_is_found(root: str) -> None:
    shard = next(path for path in Path(root).rglob("*.distcp") if "step_000000000020" in str(path))
    shard.write_bytes(b"shaRd")
    result = runner.invoke(app_module.app, ["verify", root, "--all"])
    assert result.exit_code == 3


def test_errors_name_what_is_there(root: str) -> None:
    with pytest.raises(CheckpointError, match="committed steps: 10, 20"):
        run("show", root, "--step", "15")
    with pytest.raises(CheckpointError, match=r"no catalog\.json"):
        run("ls", root + "-other")


def test_rebuild_asks_first(root: str) -> None:
    job = JobCatalog(open_store(root))
    job.store.delete(["catalog.json"])
    assert runner.invoke(app_module.app, ["rebuild", root], input="n\n").exit_code == 1
    assert job.read() is None
    run("rebuild", root, "--yes")
    assert [entry.step for entry in job.require().live()] == [10, 20]


def test_prune_removes_what_is_named_and_asks_first(root: str) -> None:
    job = JobCatalog(open_store(root))
    save(job.claim(), 40)
    assert runner.invoke(app_module.app, ["prune", root, "--step", "10"], input="n\n").exit_code == 1
    assert len(job.require().live()) == 3
    run("prune", root, "--keep-last", "1", "--yes")
    assert [entry.step for entry in job.require().live()] == [20, 40]
    assert not any("step_000000000010" in info.key for info in job.store.list("checkpoints/"))
    with pytest.raises(CheckpointError, match="stays: fallback"):
        run("prune", root, "--step", "20", "--yes")
    with pytest.raises(CheckpointError, match="say what to remove"):
        run("prune", root)
    assert "nothing to remove" in run("prune", root, "--set-aside")
