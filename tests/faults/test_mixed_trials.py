"""Seeded trials of everything at once: kills, lost operators, suspends, edits and deletions, at random moments.

`make test-faults` runs a few; `make trials` a hundred with the torch-free trainer and twenty with torch. Several jobs
run side by side, so that a killed operator strikes them all. EVERSTEP_MIXED_SEED=7 repeats one seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dev.s3 import S3Endpoint
from everstep.catalog import JobCatalog, S3Access, job_root, open_store
from tests.faults import evidence
from tests.faults.conftest import Ground, Range
from tests.faults.disturber import Disturber
from tests.faults.mixed import MixedTrial
from tests.faults.trials import SAVE_EVERY, STEPS
from tests.plugins.cluster import RunningCluster
from tests.support.site import Site, opened
from tests.trainers.lite import SHARD, chain

CHOSEN = os.environ.get("EVERSTEP_MIXED_SEED")
ALL = bool(os.environ.get("EVERSTEP_ALL_TRIALS"))
TRIALS = int(os.environ.get("EVERSTEP_MIXED_TRIALS", "100" if ALL else "6"))
TORCH_TRIALS = int(os.environ.get("EVERSTEP_MIXED_TORCH_TRIALS", "20" if ALL else "1"))
ABREAST = 4
"""Jobs of the torch-free trainer at the same time."""
LITE_STEPS, LITE_SAVES = 60, 5
LITE = (f"--total-steps={LITE_STEPS}", "--seconds-per-step=0.1", f"--save-every={LITE_SAVES}")
PATIENT = {"maxRestarts": 1000, "maxRestartsWithoutProgress": 100, "backoff": {"initialSeconds": 1, "maxSeconds": 2}}

POLICY = ("EVERSTEP_POLICY",)
"""It may change on the way, so the checker holds the register to what every policy keeps."""


@pytest.fixture(scope="session")
def ground(
    cluster: RunningCluster,
    cluster_s3: S3Endpoint,
    load_image: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Ground]:
    operator, trainer = load_image("operator"), load_image("tests")
    bucket = cluster_s3.make_bucket(versioned=True)
    with opened(cluster, cluster_s3, bucket, operator) as site:
        checkpoint = {"interval": {"steps": LITE_SAVES}, "keepLast": 3}
        yield Ground(site, trainer, tmp_path_factory.mktemp("evidence"), LITE, checkpoint)


def seeds(count: int) -> list[int]:
    return [int(CHOSEN)] if CHOSEN else list(range(count))


@pytest.mark.timeout(120 + 60 * TRIALS)
def test_whatever_befalls_it_a_job_ends_as_if_nothing_had(ground: Ground) -> None:
    with ThreadPoolExecutor(ABREAST) as pool:
        results = list(pool.map(lambda seed: _lite_trial(ground, seed), seeds(TRIALS)))
    bad = [result for result in results if result]
    print(f"\n{len(results) - len(bad)} of {len(results)} mixed trials ended as expected")
    assert not bad, "\n\n".join(bad)


def _lite_trial(ground: Ground, seed: int) -> str:
    """What went wrong; empty where nothing did."""
    trial, site, job = MixedTrial.of(seed, steps=LITE_STEPS, save_every=LITE_SAVES), ground.site, f"mixed-{seed}"
    with site.followers(job) as followers:
        disturber = Disturber(site, job, trial, lambda: ground.apply(job, failurePolicy=PATIENT), followers)
        try:
            status = disturber.run()
        except AssertionError as error:
            return f"{error}\n{followers.tails()}\n{site.operator.tail()}"
    found = evidence.write(ground.directory / f"{job}.json", followers, without=POLICY)
    wrong = [*_status(status, disturber, LITE_STEPS), *_state(site, job)]
    checked = evidence.check(site, job, found)
    if checked.returncode != 0:
        wrong.append(checked.stdout + checked.stderr)
    print(f"{trial}\n  dealt: {disturber.dealt}; {status['restarts']}; {checked.stdout.strip()}")
    if wrong:
        return f"{trial}: {'; '.join(wrong)}\n{status}\n{followers.tails()}"
    site.delete(job)
    return ""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", seeds(TORCH_TRIALS))
def test_with_torch_it_is_the_same_run_to_the_last_bit(shooting_range: Range, reference: Path, seed: int) -> None:
    trial, site, job = MixedTrial.of(seed, steps=STEPS, save_every=SAVE_EVERY), shooting_range.site, f"torch-{seed}"
    with site.followers(job) as followers:
        disturber = Disturber(
            site, job, trial, lambda: shooting_range.apply(job, failurePolicy=PATIENT), followers, seconds=500
        )
        status = disturber.run()
    found = evidence.write(shooting_range.directory / f"{job}.json", followers, without=POLICY)
    checked = evidence.check(site, job, found, reference)
    print(f"\n{trial}\n  dealt: {disturber.dealt}; {status['restarts']}; {checked.stdout.strip()}")
    wrong = list(_status(status, disturber, STEPS))
    assert not wrong, f"{trial}: {wrong}\n{status}\n{followers.tails()}"
    assert checked.returncode == 0, f"{trial}\n{checked.stdout}{checked.stderr}\n{followers.tails()}"
    site.delete(job)


def _status(status: dict[str, Any], disturber: Disturber, steps: int) -> Iterator[str]:
    if status.get("phase") != "Succeeded":
        yield f"it ended as {status.get('phase')}"
    last = status.get("lastCheckpoint", {}).get("step")
    if last != steps:
        yield f"its last checkpoint is step {last}"
    counted = status.get("restarts", {}).get("counted", 0)
    if counted > disturber.counted:
        yield f"{counted} restarts were counted, and only {disturber.counted} blows may count"


def _state(site: Site, job: str) -> Iterator[str]:
    """The last checkpoint holds what an uninterrupted run would hold."""
    access = S3Access(site.s3.url, site.s3.region, site.s3.access_key, site.s3.secret_key)
    store = open_store(job_root(f"s3://{site.bucket}/jobs", site.namespace, job), access)
    latest = JobCatalog(store).require().latest()
    if latest is None or store.get(f"{latest.location}/{SHARD}")[:32] != chain(LITE_STEPS):
        yield "its last state is not that of a run that nothing interrupted"
