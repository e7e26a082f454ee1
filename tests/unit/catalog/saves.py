"""Small committed saves, without torch."""

from __future__ import annotations

from datetime import UTC, datetime

from everstep.catalog import Claimed, Entry, File, Manifest, Owner, Progress
from everstep.catalog.verify import block_sums

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OWNER = Owner(cluster="c1", namespace="ns", name="job", uid="u1")


def save(
    claimed: Claimed,
    step: int,
    score: float | None = None,
    body: bytes = b"shard",
    metrics: dict[str, float] | None = None,
) -> Entry:
    location = claimed.new_location(step)
    claimed.job.store.put(location.key("__0_0.distcp"), body)
    manifest = Manifest(
        location=str(location),
        step=step,
        epoch=claimed.epoch,
        attempt=claimed.attempt,
        world_size=1,
        files=(File(name="__0_0.distcp", size=len(body), blocks=block_sums(body), rank=0),),
        progress=Progress(step=step, samples=step * 8),
        score=score,
        metrics=metrics or {},
        started=NOW,
        written=NOW,
    )
    return claimed.commit(manifest)
