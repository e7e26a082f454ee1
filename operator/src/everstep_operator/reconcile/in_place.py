"""Restarts of the workers within an attempt: torchrun makes them itself, and a claim with a new epoch tells of them.

The epoch of the last claim that was counted stands in the status beside the count, so that a crash counts none twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from everstep import failure as failure_record
from everstep.catalog import Beginning, Catalog, Claim, Location, split_root
from everstep_operator.api import TrainingJobStatus
from everstep_operator.api.status import Restarts, ResumedFrom
from everstep_operator.reconcile import classify, gang, recovery, signals, torchrun
from everstep_operator.reconcile.attempt import Attempt, own
from everstep_operator.reconcile.observation import Observation

MOST_LOGS = 64
"""Logs that are read for the cause; it is for people, and a pass over a large gang must not take minutes."""

LOCAL = "local:"
"""Before the name of a save that lies on the nodes."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What is new since the status was written: the last claim's epoch, and how many of the claims were restarts."""

    epoch: int
    restarts: int


def seen(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> Claims | None:
    """None where there is nothing new. `status` already tells of the attempt."""
    catalog, fence = own(observation), status.fence
    if catalog is None or catalog.claim is None or fence is None or fence.attempt != attempt.number:
        return None
    claim = catalog.claim
    if claim.attempt != attempt.number or claim.epoch <= (fence.claimed or fence.epoch):
        return None
    if _is_beginning(observation, catalog, claim):
        return None
    first = fence.epoch + 1 if fence.claimed is None else fence.claimed
    return Claims(claim.epoch, claim.epoch - first)


def _is_beginning(observation: Observation, catalog: Catalog, claim: Claim) -> bool:
    """Whether the group has yet to say where it begins: with a local tier that is not known from its claim."""
    if observation.job.spec.checkpoint.local is None or _began(catalog, claim) is not None:
        return False
    beat = observation.stored.heartbeat
    trains = beat is not None and beat.heartbeat.epoch == claim.epoch and beat.heartbeat.first_step is not None
    return not trains and not any(entry.epoch == claim.epoch for entry in catalog.checkpoints)


def _began(catalog: Catalog, claim: Claim) -> Beginning | None:
    return catalog.begun if catalog.begun is not None and catalog.begun.claim == claim.id else None


def count(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> TrainingJobStatus:
    """The status with new claims counted, and with the entry that the last of them resumed."""
    claims = seen(observation, attempt, status)
    fence = status.fence
    if claims is None or fence is None:
        return status
    restarts = status.restarts or Restarts()
    resumed = _resumed(observation)
    if claims.restarts:
        pod, reason = _culprit(observation, attempt, claims.restarts)
        restarts = restarts.model_copy(
            update={
                "in_place": restarts.in_place + claims.restarts,
                "last_reason": reason,
                "last_time": observation.now,
            }
        )
        fault = observation.results.failed_at.get(pod) if pod is not None else None
        found = recovery.begin_in_place(observation, attempt, fault, resumed.step if resumed else 0)
        status = status.model_copy(update={"recovery": found})
    fence = fence.model_copy(update={"claimed": claims.epoch})
    return status.model_copy(
        update={
            "restarts": restarts if claims.restarts else status.restarts,
            "fence": fence,
            "resumed_from": resumed,
        }
    )


def _resumed(observation: Observation) -> ResumedFrom | None:
    catalog = own(observation)
    if catalog is None or catalog.claim is None:
        return None
    began = _began(catalog, catalog.claim)
    if began is not None and began.local is not None:
        return ResumedFrom(step=Location.parse(began.local).step, location=f"{LOCAL}{began.local}")
    if catalog.claim.resumed is None:
        return None
    location = catalog.claim.resumed
    try:
        if "://" not in location:
            return ResumedFrom(step=Location.parse(location).step, location=f"{gang.root(observation)}/{location}")
        parsed = split_root(location)[1]
    except ValueError:
        return None
    return ResumedFrom(step=parsed.step, location=location) if parsed else None


def _culprit(observation: Observation, attempt: Attempt, restarts: int) -> tuple[str | None, str]:
    """The pod whose worker died, and what its log tells; its container lives on, so there is no termination message."""
    how = "restarted in place" if restarts == 1 else f"restarted in place {restarts} times"
    for pod in attempt.pods:
        log = observation.results.logs.get(pod.name)
        found = failure_record.decode(pod.container.message)
        summary = torchrun.read_summary(log)
        if summary is None or summary.code is None or (found is not None and found.peer_lost):
            continue
        where = f"a worker of pod {pod.index}{f' on {pod.node}' if pod.node else ''}"
        if summary.code < 0:
            name = signals.name(-summary.code)
            return pod.name, f"{where} was killed by {name}{signals.hint(name)}; {how}"
        error = torchrun.last_error(log)
        if error is None or not classify.is_consequence(error):
            told = f"failed: {error}" if error else f"exited with code {summary.code}"
            return pod.name, f"{where} {told}; {how}"[:1024]
    return None, f"workers of attempt {attempt.number} {how}"
