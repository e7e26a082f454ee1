from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from everstep.checkpoint.termination import describe, looks_like_lost_peer, read_record, write_record
from everstep.errors import StorageUnavailableError
from everstep.failure import MAX_BYTES, FailureRecord, encode

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_the_first_failure_of_a_worker_group_wins(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    assert write_record(FailureRecord(rank=1, exit_code=1, message="first", time=NOW), path)
    assert not write_record(FailureRecord(rank=0, exit_code=1, message="second", time=NOW), path)
    assert read_record(path) == FailureRecord(rank=1, exit_code=1, message="first", time=NOW)
    assert write_record(FailureRecord(rank=0, exit_code=1, message="later group", time=NOW, restart=1), path)
    found = read_record(path)
    assert found is not None
    assert found.message == "later group"


def test_a_cause_takes_the_place_of_a_consequence_and_never_the_other_way_round(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lost = FailureRecord(rank=1, exit_code=1, message="connection closed by peer", peer_lost=True, time=NOW)
    fenced = FailureRecord(rank=0, exit_code=76, exception="FencedError", message="fenced", time=NOW)
    assert write_record(lost, path)
    assert not write_record(FailureRecord(rank=2, signal="SIGTERM", exit_code=143, time=NOW), path)
    assert write_record(fenced, path)
    assert not write_record(lost, path)
    assert read_record(path) == fenced


def test_somebody_elses_message_stays(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("out of tea")
    assert not write_record(FailureRecord(message="mine", time=NOW), path)
    assert path.read_text() == "out of tea"


def test_a_record_fits_a_termination_message() -> None:
    record = describe(raised(ValueError("ä" * 9000)), 1, 7)
    body = encode(record)
    assert len(body) <= MAX_BYTES
    content = json.loads(body)
    assert (content["exception"], content["step"]) == ("ValueError", 7)
    long_lines = FailureRecord(message="m", traceback=["x" * 3000] * 6, time=NOW)
    assert len(encode(long_lines)) <= MAX_BYTES


def test_nothing_is_written_where_nothing_can_be(tmp_path: Path) -> None:
    assert not write_record(FailureRecord(time=NOW), tmp_path / "no" / "such" / "folder")


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("[/pytorch/third_party/gloo/pair.cc:545] Connection closed by peer [10.0.0.1]:4321", True),
        ("Connection reset by peer", True),
        ("shape mismatch", False),
    ],
)
def test_consequences_are_told_from_causes(message: str, lost: bool) -> None:
    assert looks_like_lost_peer(message) is lost


def run(tmp_path: Path, *arguments: str) -> tuple[int, FailureRecord | None, str]:
    path = tmp_path / "log"
    path.touch()
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env={"EVERSTEP_TERMINATION_LOG": str(path), "RANK": "3", "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    return done.returncode, read_record(path), done.stderr


def test_a_server_that_refuses_is_no_lost_peer() -> None:
    lost = describe(raised(RuntimeError("[gloo] Connection reset by peer")), 1)
    refused = describe(raised(ConnectionRefusedError(111, "Connection refused")), 1)
    away = describe(raised(StorageUnavailableError("PUT: connection reset")), 1)
    assert [each.peer_lost for each in (lost, refused, away)] == [True, False, False]


def test_a_script_that_dies_in_its_first_import_leaves_a_record(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\nassert sys.argv[1:] == ['--flag']\nimport does_not_exist\n")
    code, record, errors = run(tmp_path, "everstep.launch.worker", "script.py", "--flag")
    assert code == 1
    assert record is not None
    assert (record.rank, record.exception) == (3, "ModuleNotFoundError")
    assert "import does_not_exist" in "\n".join(record.traceback)
    assert "runpy" not in errors


def test_a_scripts_own_exit_code_is_kept(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("import sys\nassert __name__ == '__main__'\nsys.exit(78)\n")
    code, record, _ = run(tmp_path, "everstep.launch.worker", "-m", "module")
    assert code == 78
    assert record is not None
    assert record.exit_code == 78
    (tmp_path / "log").write_text("")
    (tmp_path / "module.py").write_text("raise SystemExit\n")
    assert run(tmp_path, "everstep.launch.worker", "-m", "module")[:2] == (0, None)


def test_a_plain_command_keeps_its_code(tmp_path: Path) -> None:
    assert run(tmp_path, "everstep.launch", "sh", "-c", "exit 7")[0] == 7
    assert run(tmp_path, "everstep.launch", "sh", "-c", "kill -TERM $$")[0] == 143
    code, _, errors = run(tmp_path, "everstep.launch", "no-such-command")
    assert code == 127
    assert "no-such-command" in errors


def test_the_library_costs_no_torch() -> None:
    text = (
        "import sys, everstep, everstep.checkpoint.environment, everstep.checkpoint.termination, everstep.launch.main;"
        "import everstep.checkpoint.heartbeat, everstep.train.config; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", text], check=True)
