"""Ranks that were stopped, that others took over from, and that then go on: they commit nothing, and say why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from everstep import exits
from tests.faults import evidence
from tests.faults.conftest import Range
from tests.faults.zombies import Freezer, StrayPod
from tests.support import pod_processes
from tests.support.followers import Followers
from tests.support.site import Site

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
