"""Ranks that were stopped, that others took over from, and that then go on: they commit nothing, and say why."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.s3 import S3Endpoint
from everstep import exits
from everstep.catalog import JobCatalog, Owner, S3Access, open_store
from tests.faults import evidence
from tests.faults.check_history import main as check_history
from tests.faults.conftest import Range
from tests.faults.zombies import Freezer, StrayPod, stop
from tests.support import pod_processes
from tests.support.followers import Followers
from tests.support.gate import Gate
from tests.support.site import Site
from tests.trainer import gang

pytestmark = pytest.mark.skipif(
    "EVERSTEP_FAULT_SEED" in os.environ, reason="EVERSTEP_FAULT_SEED asks for one kill trial"
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("at", ["manifest", "swap"])
def test_a_rank_of_an_older_attempt_is_fenced(shooting_range: Range, reference: Path, at: str) -> None:
    """Its pod is torn away while it is stopped between manifest and swap; it goes on when its successor trains."""
    site, gate = shooting_range.site, shooting_range.gate
    job = f"zombie-{at}"
    strays: list[StrayPod] = []

    def freeze(address: str) -> None:
        pod = followers.at(address)
        first, worker = pod_processes.first(address, uid), pod_processes.worker(address, uid)
        strays.append(StrayPod.cut_off(first, worker, site.cluster.instance.state, pod.uid))
        site.delete_pod(pod.name)

    def successor_reigns() -> bool:
        now = site.catalog(job)
        return now is not None and now.claim is not None and now.claim.attempt == 2

    freezer = Freezer(15, at, freeze, successor_reigns)
    try:
        with site.followers(job) as followers:
            uid = shooting_range.apply(job)
            gate.watcher = freezer
            followers.until("the freeze", freezer.frozen.is_set, 300)
            followers.until("a step of attempt 2", lambda: has_trained(followers, 2), 300)
            followers.until("the held request", freezer.delivered.is_set, 30)
            (zombie,) = strays
            zombie.wake()
            (code, words), record = zombie.end(), zombie.record()
            site.finish(job, followers)
    finally:
        gate.watcher = None
        for stray in strays:
            stray.give_back()
    assert "fenced: " in words, words
    assert code == exits.FENCED, (words, record)
    assert record is not None
    assert (record.exception, record.exit_code, record.rank) == ("FencedError", exits.FENCED, 0)
    found = shooting_range.write_evidence(job, followers)
    checked = evidence.check(site, job, found, reference)
    assert checked.returncode == 0, f"{checked.stdout}{checked.stderr}"
    assert resumed(site, job) == [(2, 10)]
    site.delete(job)


def has_trained(followers: Followers, attempt: int) -> bool:
    return any(line.text.startswith('{"step": ') for pod in followers.of_attempt(attempt) for line in pod.lines)


def resumed(site: Site, job: str) -> list[tuple[int, int]]:
    """Attempt and step of the claim in force."""
    now = site.catalog(job)
    assert now is not None
    assert now.claim is not None
    return [(now.claim.attempt, int(str(now.claim.resumed).split("step_")[1][:12]))]


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
