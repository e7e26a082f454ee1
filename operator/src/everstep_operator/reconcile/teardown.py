"""Pods that are to go, and when they are gone enough for the next gang.

A gang that has lost a member cannot save any more, so after a failure its grace is a second; one that hangs has some
more, to tell where. A planned stop gets the pods' own grace, in which they save.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from everstep_operator.api import TrainingJobStatus
from everstep_operator.reconcile import stall
from everstep_operator.reconcile.history import PLANNED
from everstep_operator.reconcile.observation import Observation, PodView
from everstep_operator.reconcile.plan import DeletePod

GRACE = 1
STALL_GRACE = 15
"""A gang that hangs answers no SIGTERM: the image's entry point takes what its ranks are at, which needs seconds."""


OVERDUE = timedelta(minutes=5)
"""How long a pod is waited for beyond its grace. Its kubelet has killed it by then, and what a kill does not end, such
as a process that hangs in a driver, may never end, while the rest of the gang's nodes stand idle."""


def deletions(status: TrainingJobStatus, pods: Iterable[PodView], unended: int | None = GRACE) -> tuple[DeletePod, ...]:
    """How an attempt ended, as `status` records it, decides about the grace of its pods; `unended` is theirs where
    nothing is recorded. After a failure a longer grace that is running already is cut short."""
    reasons = {entry.attempt: entry.reason for entry in status.history}
    found = []
    for pod in pods:
        reason = reasons.get(pod.attempt)
        grace = unended if reason is None else _grace(reason)
        longer = grace is not None and not pod.terminal and (pod.deletion_grace or 0) > grace
        if longer or not pod.deleting:
            found.append(DeletePod(pod.name, pod.uid, grace))
    return tuple(found)


def _grace(reason: str) -> int | None:
    if reason in PLANNED:
        return None
    return STALL_GRACE if reason == stall.REASON else GRACE


def in_the_way(observation: Observation, pods: Iterable[PodView]) -> tuple[PodView, ...]:
    """Pods that may still run: neither terminal nor on a lost node, nor overdue."""
    late = overdue(observation, pods := tuple(pods))
    return tuple(pod for pod in pods if not (pod.terminal or pod in late or _lost(observation, pod)))


def overdue(observation: Observation, pods: Iterable[PodView]) -> tuple[PodView, ...]:
    """Pods that should have stopped long ago. They are fenced, so they commit nothing, and their nodes keep the room
    that they hold."""
    return tuple(pod for pod in pods if not pod.terminal and pod.stop_by and observation.now - pod.stop_by > OVERDUE)


def _lost(observation: Observation, pod: PodView) -> bool:
    """Its node does not answer: whatever runs there was fenced, and its kubelet cannot confirm a deletion."""
    node = observation.node(pod.node)
    return pod.deleting and node is not None and not node.healthy
