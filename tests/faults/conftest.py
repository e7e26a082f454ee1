"""One operator, one gate and one uninterrupted run for all trials of a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dev.s3 import S3Endpoint
from tests.faults import evidence
from tests.faults.trials import SAVE_EVERY, STEPS
from tests.plugins.cluster import RunningCluster
from tests.support.followers import Followers
from tests.support.gate import Gate
from tests.support.site import Site, opened

SMALL = ("--model.layers=2", "--data.sequence=64", "--data.max_bytes=1000000")
KEEP = {"keepLast": 2, "keepBest": {"count": 1, "metric": "loss", "mode": "min"}, "keepEvery": 20}


@dataclass
class Ground:
    """Where trials take place, and of which job."""

    site: Site
    image: str
    directory: Path
    args: Sequence[str]
    checkpoint: dict[str, Any]

    def apply(self, job: str, **spec: Any) -> str:
        """Create the job; returns its uid."""
        return self.site.apply(job, self.image, self.args, self.checkpoint, **spec)

    def write_evidence(self, job: str, followers: Followers) -> Path:
        return evidence.write(self.directory / f"{job}.json", followers)


@dataclass
class Range(Ground):
    """All that pods and operator write goes through the gate."""

    gate: Gate


@pytest.fixture(scope="session")
def shooting_range(
    cluster: RunningCluster,
    cluster_s3: S3Endpoint,
    load_image: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Range]:
    operator, trainer = load_image("operator"), load_image("trainer")
    bucket = cluster_s3.make_bucket(versioned=True)
    with (
        Gate(cluster_s3.url, cluster.instance.network.host_address) as gate,
        opened(cluster, cluster_s3, bucket, operator, gate.url) as site,
    ):
        args = ["torchrun", "-m", "everstep.train", f"--steps={STEPS}", "--evaluation.every=20", *SMALL]
        checkpoint = {"interval": {"steps": SAVE_EVERY}, **KEEP}
        yield Range(site, trainer, tmp_path_factory.mktemp("evidence"), args, checkpoint, gate)


@pytest.fixture(scope="session")
def reference(shooting_range: Range) -> Path:
    """The evidence of a run that nothing interrupts."""
    site = shooting_range.site
    with site.followers("reference") as followers:
        shooting_range.apply("reference")
        site.finish("reference", followers)
    site.delete("reference")
    return shooting_range.write_evidence("reference", followers)
