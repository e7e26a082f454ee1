"""A worker group that was stopped, that another of its attempt took over from, and that then goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.s3 import S3Endpoint
from everstep import exits
from everstep.catalog import JobCatalog, Owner, S3Access, open_store
from tests.faults.check_history import main as check_history
from tests.faults.zombies import Freezer, stop
from tests.support.gate import Gate

from . import gang


@pytest.fixture
def local_gate(s3_server: S3Endpoint) -> Iterator[Gate]:
    with Gate(s3_server.url, "127.0.0.1") as gate:
        yield gate


@pytest.mark.timeout(600)
@pytest.mark.parametrize("at", ["manifest", "swap"])
def test_an_orphan_of_the_same_attempt_is_fenced(
    s3_server: S3Endpoint, local_gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Two worker groups of one attempt: the first is stopped in a save, the second claims in its place."""
    bucket = s3_server.make_bucket(versioned=True)
    access = S3Access(s3_server.url, s3_server.region, s3_server.access_key, s3_server.secret_key)
    job = JobCatalog(open_store(f"s3://{bucket}/jobs/ns/job", access))
    job.fence(Owner(cluster="c", namespace="ns", name="job", uid="u"))
    environment = {
        "EVERSTEP_ATTEMPT": "1",
        "EVERSTEP_JOB_UID": "u",
        "EVERSTEP_POLICY": '{"interval": {"steps": 5}}',
        "AWS_ENDPOINT_URL": local_gate.url,
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
        "AWS_REGION": s3_server.region,
        "AWS_DEFAULT_REGION": s3_server.region,
    }
    command = ["-m", "everstep.train", "--steps=20", "--evaluation.every=20"]

    def freeze(_: str) -> None:
        for pid in [*orphan.workers(), orphan.process.pid]:
            stop(pid)

    def second_reigns() -> bool:
        claim = job.require().claim
        return claim is not None and claim.epoch > 2

    local_gate.watcher = freezer = Freezer(10, at, freeze, second_reigns)
    orphan = gang.start(tmp_path / "first", command, job.store.uri, environment=environment)
    try:
        assert freezer.frozen.wait(240), orphan.log
        second = gang.start(tmp_path / "second", command, job.store.uri, environment=environment)
        try:
            second.wait_for('{"step": 6')
            assert freezer.delivered.wait(30)
            for pid in [orphan.process.pid, *orphan.workers()]:
                os.kill(pid, signal.SIGCONT)
            assert orphan.wait() == exits.FENCED, orphan.log
            assert second.wait() == 0, second.log
        finally:
            second.kill()
    finally:
        orphan.kill()
    assert "fenced: this worker group is fenced" in orphan.log
    assert orphan.record is not None
    assert (orphan.record.exception, orphan.record.exit_code) == ("FencedError", exits.FENCED)
    assert "resumed step 5" in second.log
    assert [(entry.step, entry.epoch) for entry in job.require().live()] == [(5, 2), (10, 3), (15, 3), (20, 3)]
    assert orphan.losses() | second.losses() == second.losses() | orphan.losses()
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    assert check_history([f"--bucket={bucket}", "--prefix=jobs/ns/job"]) == 0
