from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from everstep.failure import FailureRecord, decode
from everstep.launch.elastic import choose, final_code

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def failure(rank: int, exit_code: int) -> ProcessFailure:
    return ProcessFailure(local_rank=rank, pid=100 + rank, exitcode=exit_code, error_file="<N/A>")


def test_a_killed_rank_is_the_cause_whatever_its_peers_wrote() -> None:
    record = FailureRecord(rank=0, exit_code=1, message="Connection closed by peer", time=NOW, step=12, peer_lost=True)
    chosen = choose({0: failure(0, 1), 1: failure(1, -9)}, record, 0)
    assert (chosen.rank, chosen.signal, chosen.exit_code, chosen.step) == (1, "SIGKILL", 137, 12)


def test_an_exception_is_the_cause_of_an_abort() -> None:
    record = FailureRecord(rank=0, exit_code=1, exception="ValueError", message="bad batch", time=NOW)
    assert choose({0: failure(0, 1), 1: failure(1, -6)}, record, 0) is record


def test_without_a_record_the_exit_code_speaks() -> None:
    chosen = choose({1: failure(1, 3)}, None, 0)
    assert (chosen.rank, chosen.exit_code, chosen.signal) == (1, 3, None)


def test_the_record_of_an_earlier_worker_group_does_not_count() -> None:
    stale = FailureRecord(rank=0, exit_code=1, message="long ago", time=NOW)
    assert choose({0: failure(0, -15), 1: failure(1, 3)}, stale, 1).exit_code == 3


def test_the_agents_own_sigterm_is_no_cause() -> None:
    record = FailureRecord(rank=0, exit_code=78, message="misfit", time=NOW)
    assert choose({0: failure(0, -15), 1: failure(1, 78)}, record, 0) is record
    assert choose({0: failure(0, -15), 1: failure(1, 78)}, None, 0).exit_code == 78


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        (
            "import argparse; argparse.ArgumentParser('train').parse_args()",
            2,
            "2: train: error: unrecognized arguments",
        ),
        ("raise SystemExit(3)", 3, "3"),
        ("raise SystemExit('no data in /data')", 1, "no data in /data"),
        ("import no_such_module", 1, "No module named 'no_such_module'"),
    ],
)
def test_a_script_that_ends_by_itself_says_why(script: str, code: int, message: str, tmp_path: Path) -> None:
    path, log = tmp_path / "train.py", tmp_path / "termination-log"
    path.write_text(script)
    command = [sys.executable, "-m", "everstep.launch.worker", str(path), "--no-such-flag"]
    done = subprocess.run(command, env={"EVERSTEP_TERMINATION_LOG": str(log)}, capture_output=True)
    record = decode(log.read_bytes())
    assert record is not None
    assert (done.returncode, record.exit_code) == (code, code)
    assert record.message.startswith(message)


def test_a_fenced_rank_is_the_end_whatever_the_agent_dies_of_besides() -> None:
    record = FailureRecord(rank=0, exit_code=76, exception="FencedError", time=datetime.now(UTC), restart=1)
    assert final_code(record, 1) == 76
    assert final_code(record, 2) is None
    assert final_code(record.model_copy(update={"exit_code": 1}), 1) is None
    assert final_code(None, 0) is None
