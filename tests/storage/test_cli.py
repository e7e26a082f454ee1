"""The program on a real S3 server, as a shell starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from dev.s3 import S3Endpoint
from everstep.catalog import JobCatalog, open_store
from tests.storage.conftest import access_of
from tests.unit.catalog.saves import save


@pytest.fixture
def place(s3_server: S3Endpoint) -> str:
    """Two runs, one of them with a save that nobody committed."""
    place = f"s3://{s3_server.make_bucket()}/jobs"
    for name in ("a", "b"):
        job = JobCatalog(open_store(f"{place}/ns/{name}", access_of(s3_server)))
        claimed = job.claim()
        for step in (1, 2, 3):
            save(claimed, step)
    job.store.put(claimed.new_location(4).key("__0_0.distcp"), b"x")
    return place


def everstep(server: S3Endpoint, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-c", "from everstep.cli import main; main()", *arguments]
    inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}  # a pipe has no width
    done = subprocess.run(command, env=inherited | server.environment(), capture_output=True, text=True)
    assert done.returncode == code, done
    return done.stdout or done.stderr


def test_commands_on_s3(place: str, s3_server: S3Endpoint) -> None:
    found = json.loads(everstep(s3_server, "ls", place, "--partial", "-o", "json"))
    shown = [(run["uri"], [(c["step"], c["status"]) for c in run["checkpoints"]]) for run in found["runs"]]
    complete = [(step, "complete") for step in (1, 2, 3)]
    assert shown == [(f"{place}/ns/a", complete), (f"{place}/ns/b", [*complete, (4, "partial")])]
    everstep(s3_server, "verify", f"{place}/ns/a", "--all")
    everstep(s3_server, "pin", f"{place}/ns/a", "--step", "1")
    everstep(s3_server, "prune", f"{place}/ns/b", "--keep-last", "2", "--yes")
    kept = json.loads(everstep(s3_server, "ls", place, "-o", "json"))
    assert [[c["step"] for c in run["checkpoints"]] for run in kept["runs"]] == [[1, 2, 3], [2, 3]]
    assert kept["runs"][0]["checkpoints"][0]["kept"][0] == "pinned"


def test_damage_and_refusals_on_s3(place: str, s3_server: S3Endpoint) -> None:
    job = JobCatalog(open_store(f"{place}/ns/a", access_of(s3_server)))
    job.store.put(f"{job.require().live()[0].location}/__0_0.distcp", b"shaRd")
    assert "are not those that were committed" in everstep(s3_server, "verify", f"{place}/ns/a", "--step", "1", code=3)
    assert "the bucket 'nowhere-at-all' does not exist" in everstep(s3_server, "ls", "s3://nowhere-at-all/x", code=1)
