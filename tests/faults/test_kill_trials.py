"""Seeded kill trials: `EVERSTEP_FAULT_SEED=7 make test-faults` repeats one of them, `make trials` runs all ten."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import evidence
from tests.faults.conftest import Range
from tests.faults.striker import Striker
from tests.faults.trials import FEW, SEEDS, Trial

CHOSEN = os.environ.get("EVERSTEP_FAULT_SEED")
ALL = bool(os.environ.get("EVERSTEP_ALL_TRIALS"))


@pytest.fixture(autouse=True)
def open_gate(shooting_range: Range) -> Iterator[None]:
    yield
    shooting_range.gate.watcher = None


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [int(CHOSEN)] if CHOSEN else SEEDS if ALL else FEW)
def test_comes_back_at_its_latest_committed_step(shooting_range: Range, reference: Path, seed: int) -> None:
    trial, site = Trial.of(seed), shooting_range.site
    job = f"trial-{seed}"
    with site.followers(job) as followers:
        uid = shooting_range.apply(job)
        striker = Striker(trial, uid, site.prefix(job), followers, site.delete_pod, lambda: site.catalog(job))
        shooting_range.gate.watcher = striker
        if trial.moment == "step":
            striker.strike_in_step()
        followers.until(str(trial), striker.struck.is_set, 120)
        status = site.finish(job, followers)
    found = shooting_range.write_evidence(job, followers)
    restarts = status["restarts"]
    print(f"\n{trial}\n  {striker.note}\n  {restarts}\n  {status.get('recovery')}")
    assert restarts["total"] + restarts["inPlace"] >= 1, restarts
    checked = evidence.check(site, job, found, reference)
    print(f"  {checked.stdout}")
    assert checked.returncode == 0, f"{trial}: {striker.note}\n{checked.stdout}{checked.stderr}\n{followers.tails()}"
    site.delete(job)
