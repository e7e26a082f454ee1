from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from everstep.catalog import Best, Entry, JobCatalog, Manifest, Resume, Retention, open_store
from everstep.catalog.keys import split_root
from everstep.catalog.store import ObjectInfo
from everstep.catalog.store.posix import PosixStore
from everstep.cli import app as app_module
from everstep.errors import CheckpointError, CheckpointNotFoundError, InvalidOperationError, StorageRefusedError
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


def run(*arguments: str, code: int = 0, text: str | None = None) -> str:
    """What it prints on stdout, in a terminal of 80 columns."""
    result = runner.invoke(app_module.app, list(arguments), input=text, catch_exceptions=False, env={"COLUMNS": "80"})
    assert result.exit_code == code, result.output
    return result.stdout


def shard_of(root: str, step: int) -> Path:
    return next(path for path in Path(root).rglob("*.distcp") if f"step_{step:012}" in str(path))


def test_ls_finds_runs_below_a_place(root: str, tmp_path: Path) -> None:
    data = json.loads(run("ls", str(tmp_path / "runs"), "-o", "json"))
    assert [r["uri"] for r in data["runs"]] == [root]
    assert [(c["step"], c["status"]) for c in data["runs"][0]["checkpoints"]] == [(10, "complete"), (20, "complete")]
    assert data["runs"][0]["latest"]["step"] == 20
    assert yaml.safe_load(run("ls", str(tmp_path / "runs"), "-o", "yaml")) == data


def test_ls_leaves_out_what_it_may_not_look_into() -> None:
    """Such as lost+found, which every disk has."""
    before = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        save(JobCatalog(open_store(f"{name}/runs/job")).claim(), 10)
        closed = Path(name, "lost+found")
        closed.mkdir(mode=0)
        for folder in (Path(name), *Path(name, "runs").rglob("*")):
            folder.chmod(0o755)
        if before == 0:
            os.seteuid(65534)
        try:
            found = runner.invoke(app_module.app, ["ls", name, "-o", "json"], catch_exceptions=False)
            with pytest.raises(StorageRefusedError, match="Permission denied"):
                runner.invoke(app_module.app, ["ls", str(closed)], catch_exceptions=False)
        finally:
            os.seteuid(before)
    assert [run["uri"] for run in json.loads(found.stdout)["runs"]] == [f"{name}/runs/job"]
    assert "left out" in found.stderr
    assert "lost+found" in found.stderr


def test_ls_shows_every_status_and_fits_a_terminal(root: str) -> None:
    job = JobCatalog(open_store(root))
    claimed = job.claim()
    for step in (40, 50, 60, 123456789):
        save(claimed, step, score=step / 7)
    claimed.quarantine(
        job.require().live()[2].location, "bytes 0 to 5 of __0_0.distcp are not those that were committed"
    )
    job.pin(job.require().live()[0].location)
    job.retire(Retention(last=1, best=Best(count=1, mode="max")))
    save(job.claim(resume=Resume(location=job.require().live()[-2].location)), 70)
    text = run("ls", root, "--partial")
    statuses = {line.split()[0]: line for line in text.splitlines() if line[:9].strip().isdigit()}
    for step, status in (
        (10, "complete"),
        (20, "removing"),
        (30, "partial"),
        (40, "quarantined"),
        (123456789, "abandoned"),
    ):
        assert f"  {status}" in statuses[str(step)]
    assert max(len(line) for line in text.splitlines() if line != root) <= 80
    words = " ".join(text.split())
    for reason in ("pinned", "will be swept", "latest", "fallback", "last 1", "best 1"):
        assert reason in words
    assert "Total: 8 checkpoints" in text
    assert "Grand total: 1 run, 8 checkpoints, " in text


def test_ls_lists_no_checkpoint_unless_asked(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    plain = PosixStore.list

    def noting(self: PosixStore, prefix: str) -> Iterator[ObjectInfo]:
        listed.append(prefix)
        return plain(self, prefix)

    monkeypatch.setattr(PosixStore, "list", noting)
    assert "partial" not in run("ls", root)
    assert listed == []
    assert "partial" in run("ls", root, "--partial")
    assert listed


def test_one_register_that_cannot_be_read_hides_no_other_run(root: str, tmp_path: Path) -> None:
    other = JobCatalog(open_store(str(tmp_path / "runs" / "ns" / "lost")))
    save(other.claim(), 5)
    other.store.delete(["catalog.json"])
    damaged = JobCatalog(open_store(str(tmp_path / "runs" / "ns" / "cut")))
    damaged.claim()
    next((tmp_path / "runs" / "ns" / "cut" / "catalog.d").iterdir()).write_text("{")
    text = run("ls", str(tmp_path / "runs"), code=3)
    assert "catalog.json is missing" in text
    assert text.count("catalog.json is not JSON") == 1
    assert "Grand total: 3 runs, 2 checkpoints" in text


def test_show(root: str) -> None:
    assert json.loads(run("show", root, "--step", "10", "-o", "json"))["manifest"]["world_size"] == 1
    text = run("show", root, "--step", "10")
    assert "Score       0.1" in text
    assert "__0_0.distcp" in text
    latest = JobCatalog(open_store(root)).require().live()[-1]
    assert json.loads(run("show", f"{root}/{latest.location}", "-o", "json"))["step"] == 20


def test_pin_and_unpin(root: str) -> None:
    run("pin", root, "--step", "10")
    assert JobCatalog(open_store(root)).require().live()[0].pinned
    assert json.loads(run("unpin", root, "--step", "10", "-o", "json"))["pinned"] is False
    assert not JobCatalog(open_store(root)).require().live()[0].pinned


def test_verify_reads_everything_and_says_where_the_damage_is(root: str) -> None:
    assert "all right" in run("verify", root)
    shard_of(root, 20).write_bytes(b"shaRd")
    assert "__0_0.distcp: bytes 0 to 4 are not those that were committed" in " ".join(
        run("verify", root, code=3).split()
    )
    data = json.loads(run("verify", root, "--all", "-o", "json", code=3))
    assert [(c["step"], bool(c["damage"])) for c in data["checkpoints"]] == [(10, False), (20, True)]
    shard_of(root, 20).write_bytes(b"shard and more")
    run("verify", root, code=3)
    shard_of(root, 20).unlink()
    assert "is missing" in run("verify", root, "-o", "yaml", code=3)


def test_what_is_removed_while_it_is_read_is_not_damaged(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = JobCatalog(open_store(root))
    save(job.claim(), 40)
    location = job.require().live()[0].location
    plain = JobCatalog.manifest

    def slowly(self: JobCatalog, point: Entry) -> Manifest:
        found = plain(self, point)
        job.prune([location])
        job.finish_removals()
        return found

    monkeypatch.setattr(JobCatalog, "manifest", slowly)
    with pytest.raises(CheckpointNotFoundError, match="was removed while it was being read"):
        run("verify", root, "--step", "10")


def test_errors_name_what_is_there(root: str) -> None:
    with pytest.raises(CheckpointError, match="committed steps: 10, 20"):
        run("show", root, "--step", "15")
    with pytest.raises(CheckpointError, match=r"no catalog\.json"):
        run("ls", f"{shard_of(root, 10).parent}")


def test_what_is_set_aside_is_not_used_unawares(root: str, tmp_path: Path) -> None:
    job = JobCatalog(open_store(root))
    claimed = job.claim()
    damaged = save(claimed, 30).location
    claimed.quarantine(damaged, "a flipped byte")
    assert json.loads(run("verify", root, "--step", "30", "-o", "json"))["checkpoints"][0]["state"] == "quarantined"
    assert "all right (quarantined)" in run("verify", root, "--step", "30")
    for command in (("pin", root, "--step", "30"), ("export", f"{root}/{damaged}", "--to", str(tmp_path / "to"))):
        with pytest.raises(InvalidOperationError, match="is damaged and set aside: a flipped byte"):
            run(*command)
    again = save(claimed, 30).location
    assert json.loads(run("show", root, "--step", "30", "-o", "json"))["location"] == again
    save(claimed, 40)
    save(claimed, 50)
    job.prune([again, job.require().live()[0].location])
    with pytest.raises(CheckpointNotFoundError, match="step 10 is being removed"):
        run("show", root, "--step", "10")
    with pytest.raises(CheckpointNotFoundError, match=f"{again} is being removed"):
        run("show", f"{root}/{again}")


def test_rebuild_asks_first(root: str) -> None:
    job = JobCatalog(open_store(root))
    job.store.delete(["catalog.json"])
    assert "would hold 2 checkpoints" in run("rebuild", root, "--dry-run")
    run("rebuild", root, code=1, text="n\n")
    assert job.read() is None
    run("rebuild", root, "--yes")
    assert [entry.step for entry in job.require().live()] == [10, 20]


def test_prune_removes_what_is_named_and_asks_first(root: str) -> None:
    job = JobCatalog(open_store(root))
    save(job.claim(), 40)
    run("prune", root, "--step", "10", code=1, text="n\n")
    assert "would remove 1 checkpoint, " in run("prune", root, "--keep-last", "1", "--dry-run")
    assert len(job.require().live()) == 3
    run("prune", root, "--keep-last", "1", "--yes")
    assert [entry.step for entry in job.require().live()] == [20, 40]
    assert not any("step_000000000010" in info.key for info in job.store.list("checkpoints/"))
    with pytest.raises(CheckpointError, match="stays: fallback"):
        run("prune", root, "--step", "20", "--yes")
    with pytest.raises(CheckpointError, match="say what to remove"):
        run("prune", root)
    assert "nothing to remove" in run("prune", root, "--set-aside")


def test_prune_keeps_the_union(root: str) -> None:
    job = JobCatalog(open_store(root))
    claimed = job.claim()
    for step in (40, 50, 60):
        save(claimed, step, score=step)
    data = json.loads(run("prune", root, "--keep-best", "1", "--keep-every", "20", "--dry-run", "-o", "json"))
    assert [entry["step"] for entry in data["would_remove"]] == [10]
    data = json.loads(run("prune", root, "--keep-best", "1", "--highest", "--dry-run", "-o", "json"))
    assert [entry["step"] for entry in data["would_remove"]] == [10, 20, 40]
    assert "nothing to remove" in run("prune", root, "--keep-within", "1d", "--dry-run")
    with pytest.raises(CheckpointError, match="is no time"):
        run("prune", root, "--keep-within", "soon")


def test_prune_takes_the_best_to_be_what_the_run_takes_them_to_be(root: str) -> None:
    """To take the worst for the best would delete the best for good."""
    job = JobCatalog(open_store(root))
    claimed = job.claim()
    for step in (40, 50, 60):
        save(claimed, step, score=step)
    job.retire(Retention(last=9, best=Best(count=2, mode="max")))

    def goes(*options: str) -> list[int]:
        data = json.loads(run("prune", root, *options, "--dry-run", "-o", "json"))
        return [entry["step"] for entry in data["would_remove"]]

    assert goes("--keep-best", "3") == [10, 20]
    assert goes("--keep-best", "2", "--highest") == [10, 20, 40]
    assert goes("--keep-best", "2", "--lowest") == [40]
    assert "last 9, best 2" in run("prune", root, "--step", "20", "--dry-run"), "why the others stay"


def test_of_checkpoints_without_scores_none_is_the_best(tmp_path: Path) -> None:
    job = JobCatalog(open_store(str(tmp_path)))
    claimed = job.claim()
    for step in (1, 2, 3, 4):
        save(claimed, step)
    with pytest.raises(CheckpointError, match="none of the checkpoints has a score: --keep-best keeps none"):
        run("prune", str(tmp_path), "--keep-best", "3", "--dry-run")
    assert "would remove 1 checkpoint" in run(
        "prune", str(tmp_path), "--keep-best", "3", "--keep-last", "3", "--dry-run"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune", "ROOT"), "say what to remove"),
        (("prune", "ROOT", "--keep-last", "2", "--highest"), "--keep-best keeps: it is missing"),
        (("prune", "ROOT", "--keep-within", "5"), "'5' is no time"),
        (("export", "ROOT", "--to", "new", "--max-file-size", "five"), "'five' is no size"),
        (("verify", "ROOT", "--all", "--step", "10"), "--all is every checkpoint"),
        (("show", "ROOT/CHECKPOINT", "--step", "10"), "is one checkpoint already"),
    ],
)
def test_a_wrong_call_is_told_from_a_refusal(root: str, arguments: tuple[str, ...], message: str) -> None:
    location = JobCatalog(open_store(root)).require().live()[0].location
    given = [argument.replace("ROOT", root).replace("CHECKPOINT", location) for argument in arguments]
    with pytest.raises(CheckpointError, match=message) as raised:
        run(*given)
    assert app_module.code_of(raised.value) == 2


def test_a_place_that_is_no_run_is_named_with_the_way_out(root: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no catalog\.json: `everstep ls` finds"):
        run("show", str(tmp_path / "runs"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageRefusedError, match="Not a directory"):  # another try would say the same
        run("ls", str(tmp_path / "file"))
    with pytest.raises(CheckpointNotFoundError, match=f"there is no folder {tmp_path}/typo$"):
        run("ls", str(tmp_path / "typo"))
    for uri in ("", "s3:/bucket/run", "s3//bucket/run", "s3://"):
        with pytest.raises(InvalidOperationError, match="s3://bucket/prefix"):
            run("ls", uri)


@pytest.mark.parametrize("inside", ["catalog.json", "checkpoints", "checkpoints/"])
def test_what_stands_in_each_run_is_as_good_as_its_name(root: str, inside: str) -> None:
    assert run("show", f"{root}/{inside}", "-o", "json") == run("show", root, "-o", "json")


def test_a_run_that_is_named_checkpoints_is_not_its_neighbour(root: str) -> None:
    inner = JobCatalog(open_store(f"{root}/checkpoints"))
    claimed = inner.claim()
    for step in (1, 2, 3, 4):
        save(claimed, step)
    run("prune", inner.store.uri, "--keep-last", "2", "--yes")
    assert [entry.step for entry in inner.require().live()] == [3, 4]
    assert [entry.step for entry in JobCatalog(open_store(root)).require().live()] == [10, 20]
    assert split_root(inner.store.uri) == (inner.store.uri, None)


def test_a_register_that_cannot_be_read_is_named_with_the_way_out(root: str) -> None:
    newest = max(Path(root, "catalog.d").iterdir())
    newest.write_text(newest.read_text()[:-20])
    with pytest.raises(CheckpointError, match=r"job/catalog\.json is not JSON"):
        run("show", root)
    with pytest.raises(
        InvalidOperationError, match=r"put an older version back, or move the register away and rebuild"
    ):
        run("rebuild", root, "--yes")
    assert "would hold 2 checkpoints" in run("rebuild", root, "--dry-run")
    newest.unlink()
    assert "20" in run("show", root)
    other = max(Path(root, "catalog.d").iterdir())
    other.write_text(other.read_text().replace('"format":1', '"format":99'))
    for options in ((), ("--dry-run",), ("--yes",)):
        with pytest.raises(CheckpointError, match="has format 99; this version reads 1: use the one that wrote it"):
            run("rebuild", root, *options)


def test_a_rebuild_of_nothing_is_refused_unasked(tmp_path: Path) -> None:
    with pytest.raises(InvalidOperationError, match="nothing to rebuild from"):
        run("rebuild", str(tmp_path / "typo"))
    assert not (tmp_path / "typo").exists()


def test_what_goes_to_a_pipe_has_no_traces_of_a_progress_bar(root: str) -> None:
    result = runner.invoke(app_module.app, ["verify", root, "-o", "json"], catch_exceptions=False)
    assert result.stderr == ""


def test_the_version() -> None:
    assert run("--version") == f"everstep {version('everstep')}\n"


@pytest.mark.parametrize(
    ("missing", "code"), [("torch", 1), ("typer_of_a_bug", None)], ids=["of the trainer", "a mistake"]
)
def test_a_missing_package_of_the_trainer_is_named(
    missing: str, code: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app() -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(app_module, "app", app)
    with pytest.raises(ModuleNotFoundError if code is None else SystemExit) as raised:
        app_module.main()
    if code is not None:
        assert raised.value.args == (code,)
        assert "needs torch, which the extra `everstep[trainer]` installs" in capsys.readouterr().err


CODES = (
    (("ls", "."), 1, "no catalog.json"),
    (("ls",), 2, "Missing argument"),
    (("prune", "run"), 2, "say what to remove"),
    (("verify", "run"), 3, ""),
    (("ls", "s3://bucket/run", "--endpoint", "http://127.0.0.1:9"), 5, "everstep: "),
)


@pytest.mark.slow
def test_exit_codes_and_a_program_without_torch(root: str, tmp_path: Path) -> None:
    """The program itself, as a shell starts it."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / "run").symlink_to(root)
    shard_of(root, 20).write_bytes(b"shaRd")
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "COLUMNS": "80"}
    for arguments, code, message in CODES:
        command = [sys.executable, "-c", "from everstep.cli import main; main()", *arguments]
        if arguments == ("ls", "."):
            (place / "empty").mkdir()
        where = place / "empty" if arguments[-1] == "." else place
        done = subprocess.run(command, cwd=where, env={**os.environ, **keys}, capture_output=True, text=True)
        assert (done.returncode, message in done.stderr) == (code, True), done


TORCHLESS = (
    ("ls", "run", "--partial"),
    ("show", "run"),
    ("verify", "run"),
    ("prune", "run", "--keep-last", "2", "--dry-run"),
    ("pin", "run"),
    ("unpin", "run"),
)


def test_looking_and_mending_imports_no_torch(root: str, tmp_path: Path) -> None:
    os.symlink(root, tmp_path / "run")
    lost = JobCatalog(open_store(str(tmp_path / "lost")))
    save(lost.claim(), 1)
    lost.store.delete(["catalog.json"])
    script = (
        "import sys, json\nfrom everstep.cli.app import app\n"
        "for line in json.loads(sys.argv[1]): app(line, standalone_mode=False)\n"
        "print(sorted(name for name in ('torch', 'numpy', 'kopf') if name in sys.modules), file=sys.stderr)"
    )
    lines = json.dumps([*TORCHLESS, ("rebuild", "lost", "--yes")])
    done = subprocess.run([sys.executable, "-c", script, lines], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_help_tells_the_exit_codes() -> None:
    text = " ".join(run("--help").split())
    for code in ("0 done", "1 refused", "2 a wrong call", "3 something stored is damaged", "4 the two", "5 storage"):
        assert code in text
