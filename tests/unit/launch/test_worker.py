from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from everstep.failure import decode


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
