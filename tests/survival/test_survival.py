"""Ranks, uploaders and storage struck at every phase: what was committed stands, and nothing else is seen.

Quick cases by default. EVERSTEP_SURVIVAL=all: the whole matrix (`make survival` counts and publishes it);
EVERSTEP_SURVIVAL="part stored: kill rank 1": that case alone. EVERSTEP_SURVIVAL_SEED: another order of moments.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from dev.s3 import S3Endpoint
from tests.survival import ground as grounds
from tests.survival import matrix
from tests.survival.everstep_engine import Everstep
from tests.survival.matrix import Case
from tests.survival.zygote import Zygote

pytestmark = pytest.mark.timeout(900)

SEED = int(os.environ.get("EVERSTEP_SURVIVAL_SEED", "1"))
CHOSEN = os.environ.get("EVERSTEP_SURVIVAL", "")


def cases() -> list[Case]:
    if not CHOSEN:
        return list(matrix.QUICK)
    return matrix.shuffled([case for case in matrix.whole() if CHOSEN in ("all", case.name)], SEED)


@pytest.fixture(scope="module")
def ground(s3_server: S3Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[grounds.Ground]:
    zygote = Zygote(Everstep.modules)
    try:
        yield grounds.prepare(s3_server, tmp_path_factory.mktemp("survival"), zygote)
    finally:
        zygote.end()


def survives(ground: grounds.Ground, case: Case) -> None:
    verdict = grounds.attempt(ground, case, SEED)
    assert not verdict.problems, verdict
    assert not verdict.hung
    assert not verdict.orphans
    assert verdict.interrupted == case.kills_rank, "storage and uploaders cost saves, never the run"


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_newest_committed_step_survives(ground: grounds.Ground, case: Case) -> None:
    survives(ground, case)


def test_it_survives_below_the_launcher_of_the_image(ground: grounds.Ground) -> None:
    survives(replace(ground, zygote=None), matrix.LAUNCHED)
