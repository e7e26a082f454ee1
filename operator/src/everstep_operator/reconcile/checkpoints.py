"""What is committed, for people: the catalog's live entries."""

from __future__ import annotations

from everstep.catalog import Catalog
from everstep.catalog.retention import best
from everstep_operator.api import TrainingJobStatus
from everstep_operator.api.quantities import format_bytes
from everstep_operator.api.status import BestCheckpoint, CheckpointRef, Checkpoints
from everstep_operator.reconcile import gang, retention
from everstep_operator.reconcile.attempt import own
from everstep_operator.reconcile.observation import Observation


def describe(observation: Observation, status: TrainingJobStatus) -> TrainingJobStatus:
    """The status with the latest checkpoint and the count of all; unchanged while the catalog cannot be read."""
    catalog = own(observation)
    if catalog is None:
        return status
    return status.model_copy(
        update={
            "last_checkpoint": _last(catalog, gang.root(observation)),
            "checkpoints": _all(observation, catalog, status.checkpoints),
        }
    )


def _last(catalog: Catalog, root: str) -> CheckpointRef | None:
    entry = catalog.latest()
    if entry is None:
        return None
    return CheckpointRef(
        step=entry.step,
        location=f"{root}/{entry.location}",
        committed=entry.committed,
        size=format_bytes(entry.bytes),
        attempt=entry.attempt,
    )


def _all(observation: Observation, catalog: Catalog, before: Checkpoints | None) -> Checkpoints | None:
    live = catalog.live()
    if not catalog.checkpoints:
        return None
    wanted = retention.best(observation.job.spec, catalog)
    leading = best(live, wanted)[:1] if wanted else []
    quarantined = sum(entry.state == "quarantined" for entry in catalog.checkpoints)
    seen = before.quarantined_time if before is not None else None
    if quarantined > ((before.quarantined if before is not None else None) or 0):
        seen = observation.now
    return Checkpoints(
        count=len(live),
        total_size=format_bytes(sum(entry.bytes for entry in live)),
        best=next(
            (
                BestCheckpoint(
                    step=entry.step,
                    score=f"{entry.score:.6g}",
                    location=f"{gang.root(observation)}/{entry.location}",
                )
                for entry in leading
            ),
            None,
        ),
        quarantined=quarantined or None,
        quarantined_time=seen if quarantined else None,
    )
