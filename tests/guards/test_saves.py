"""Successive checkpoints are the state at their steps, and many of them leave nothing behind."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dev.s3 import S3Endpoint
from tests.guards import size
from tests.support.python_path import python_path

pytestmark = pytest.mark.timeout(size.SECONDS)
SLACK_MIB = 8.0
SLACK_HANDLES = 8
"""Connections to storage and threads for them are made when they are first needed at once; one a save would be 20."""


def script(name: str, server: S3Endpoint, *arguments: str) -> str:
    """What it prints; raises AssertionError with its log."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("EVERSTEP_", "AWS_"))}
    root = {"EVERSTEP_ROOT": f"s3://{server.make_bucket()}/jobs/ns/job"}
    done = subprocess.run(
        [sys.executable, "-m", f"tests.guards.{name}", *arguments],
        env={**variables, **server.environment(), **root, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("timing", ["natural", "last"])
def test_each_of_many_saves_under_load_is_the_state_at_its_step(s3_server: S3Endpoint, timing: str) -> None:
    saves = size.times(500, 20)
    found = json.loads(script("saving", s3_server, str(saves), timing))
    assert found["saves"] == saves
    size.record(f"saves-{timing}", **found)


def test_nothing_grows_over_many_saves(s3_server: S3Endpoint, tmp_path: Path) -> None:
    saves = size.times(200, 40)
    path = size.folder(tmp_path) / "growth.csv"
    script("growing", s3_server, str(saves), str(path))
    with path.open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert len(rows) == saves
    early, late = rows[saves // 4 : saves // 2], rows[saves // 2 :]
    most = {name: (max(row[name] for row in early), max(row[name] for row in late)) for name in rows[0]}
    for who in ("trainer", "uploader"):
        for name in ("rss", "own"):
            before, after = most[f"{who}_{name}"]
            assert after - before < SLACK_MIB, f"{who}: {name} {before} MiB, then {after}"
        for name in ("descriptors", "threads"):
            before, after = most[f"{who}_{name}"]
            assert after - before <= SLACK_HANDLES, f"{who}: {name} {before}, then {after}"
    assert most["buffers"][1] == most["buffers"][0]
    assert not any(row["named"] for row in rows), "something of these processes stands in /dev/shm"
    size.record("growth", saves=saves, most={name: list(pair) for name, pair in most.items() if name != "save"})
