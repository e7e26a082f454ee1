"""spec.elastic: a gang that finds no room for all of its pods starts with those that it found room for.

Only a start that has come to nothing tells how much room there is: its pods that had a node. The attempt's entry in the
history says how large the next one is to be, so that a crash of the operator forgets nothing. Attempts that follow a
failure keep the smaller size, because to try the full one would cost each recovery a whole start timeout; an attempt
that follows a planned end (an edit, a suspension) tries `nodes` again.
"""

from __future__ import annotations

from everstep_operator.reconcile import starting
from everstep_operator.reconcile.attempt import Attempt
from everstep_operator.reconcile.observation import Observation


def next_nodes(observation: Observation, attempt: Attempt, reason: str, planned: bool) -> int | None:
    """Pods of the attempt that follows this one, which has just ended for `reason`; None: as many as `nodes` says."""
    bounds = observation.job.spec.elastic
    if bounds is None or planned:
        return None
    size = attempt.nodes
    placed = sum(pod.node is not None for pod in attempt.pods)
    # A pod that crashes or is deleted while others are still being scheduled says nothing of the room.
    if reason == starting.REASON and attempt.pods and placed < size:
        size = max(placed, bounds.min_nodes)
    return size if size < observation.job.spec.nodes else None


def described(observation: Observation, attempt: Attempt) -> str:
    """What to add to the sentence that all pods run."""
    wanted = observation.job.spec.nodes
    if observation.job.spec.elastic is None or attempt.nodes >= wanted:
        return ""
    return f"; {attempt.nodes} of {wanted} nodes, as there was no room for more: everstep.dev/restart-now tries again"
