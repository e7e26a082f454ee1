"""`everstep copy`: what stands at the other place is a run, byte for byte, or no run at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from everstep.catalog import Entry, JobCatalog, Resume, open_store
from everstep.catalog.rebuild import survey
from everstep.catalog.store.posix import PosixStore
from everstep.cli import app as app_module
from everstep.cli.common import WrongCallError
from everstep.errors import CheckpointCorruptError, InvalidOperationError
from tests.unit.catalog.saves import save


@pytest.fixture
def source(tmp_path: Path) -> JobCatalog:
    job = JobCatalog(open_store(str(tmp_path / "source")))
    claimed = job.claim()
    for step in (10, 20, 30):
        save(claimed, step, score=step / 10, body=bytes(range(256)) * 40_000)
    return job


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app_module.app, list(arguments), catch_exceptions=False, env={"COLUMNS": "80"})
    assert result.exit_code == code, result.output
    return result.stdout


def told(entries: list[Entry]) -> list[tuple[int, str, str, float | None]]:
    return [(entry.step, entry.location, entry.digest, entry.score) for entry in entries]


def test_a_copy_is_a_run_that_goes_on(source: JobCatalog, tmp_path: Path) -> None:
    told_of = json.loads(run("copy", source.store.uri, "--to", str(tmp_path / "all"), "--all", "-o", "json"))
    assert [each["step"] for each in told_of["checkpoints"]] == [10, 20, 30]
    run("verify", told_of["to"], "--all")
    there = JobCatalog(open_store(told_of["to"]))
    assert told(there.require().live()) == told(source.require().live())
    assert source.require().holds == ()
    claimed = there.claim()
    assert claimed.resume is not None
    assert claimed.resume.step == 30
    save(claimed, 40)
    there.sweep()
    assert [entry.step for entry in there.require().live()] == [10, 20, 30, 40]
    shutil.rmtree(tmp_path / "all" / "catalog.d")
    assert [entry.step for entry in survey(there).catalog.checkpoints] == [10, 20, 30, 40]


def test_one_checkpoint_by_step_path_or_as_the_latest(source: JobCatalog, tmp_path: Path) -> None:
    source.claim(resume=Resume(location=source.require().live()[1].location))
    path = f"{source.store.uri}/{source.require().live()[0].location}"
    for name, arguments, step in (("a", [path], 10), ("b", [source.store.uri], 20), ("c", ["--step", "30"], 30)):
        where = arguments if name != "c" else [source.store.uri, *arguments]
        run("copy", *where, "--to", str(tmp_path / name))
        there = JobCatalog(open_store(str(tmp_path / name))).require()
        assert [(entry.step, entry.state) for entry in there.checkpoints] == [(step, "live")]


def test_all_and_one_cannot_both_be_meant(source: JobCatalog, tmp_path: Path) -> None:
    path = f"{source.store.uri}/{source.require().live()[0].location}"
    for arguments in ([source.store.uri, "--step", "10"], [path]):
        with pytest.raises(WrongCallError, match="--all is every checkpoint"):
            run("copy", *arguments, "--all", "--to", str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()


def test_a_damaged_byte_leaves_no_run(source: JobCatalog, tmp_path: Path) -> None:
    shard = Path(source.store.uri, source.require().live()[1].location, "__0_0.distcp")
    body = bytearray(shard.read_bytes())
    body[9_000_000] ^= 1
    shard.write_bytes(body)
    with pytest.raises(CheckpointCorruptError, match=r"__0_0\.distcp: bytes 8912896 to 9175039 are not those"):
        run("copy", source.store.uri, "--to", str(tmp_path / "there"), "--all")
    assert JobCatalog(open_store(str(tmp_path / "there"))).read() is None
    assert source.require().holds == ()


def test_nothing_is_overwritten(source: JobCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (source.store.uri, f"{source.store.uri}/checkpoints"):
        with pytest.raises(InvalidOperationError, match="is not empty: nothing is overwritten"):
            run("copy", source.store.uri, "--to", place)
    there = tmp_path / "there"
    put = PosixStore.put

    def racing(store: PosixStore, key: str, *content: object) -> int:
        if key.endswith("COMMITTED"):
            monkeypatch.setattr(PosixStore, "put", put)
            save(JobCatalog(open_store(str(there / "elsewhere"))).claim(), 1)
            shutil.move(there / "elsewhere" / "catalog.d", there / "catalog.d")
        return put(store, key, *content)  # type: ignore[arg-type]

    monkeypatch.setattr(PosixStore, "put", racing)
    with pytest.raises(InvalidOperationError, match="has become a run meanwhile"):
        run("copy", source.store.uri, "--to", str(there))
    assert [entry.step for entry in JobCatalog(open_store(str(there))).require().live()] == [1]
