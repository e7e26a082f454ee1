"""Failures that are nobody's fault: they are not held against the job, however many there are."""

from __future__ import annotations

import re

from everstep_operator.reconcile import classify, rendezvous, starting
from everstep_operator.reconcile.classify import Cause

REASONS = frozenset(
    {
        "NodeLost",
        "NodeShutdown",
        "PodDeleted",
        "Preempting",
        rendezvous.REASON,
        "Stopped",
        "Terminated",
        "UnexpectedAdmissionError",
        starting.REASON,
    }
)
"""Words of this operator and of kubelets. `Evicted` is not among them: a pod that the kubelet evicts for its node's
sake has the condition DisruptionTarget, one that used more than it asked for has not."""
_SIGTERM = (-15, 143)
_NO_ROOM = re.compile(r"OutOf[a-z]")
"""A kubelet without room for a pod that it was given: OutOfcpu, OutOfnvidia.com/gpu; no script's OutOfMemoryError."""


def is_one(cause: Cause) -> bool:
    """A drained, preempted, evicted or deleted pod, a lost node, SIGTERM, a start that came to nothing."""
    told = cause.reason in REASONS and cause.weight != classify.ROOT  # not a script's exception of such a name
    if told or ("DisruptionTarget", "True") in cause.conditions:
        return True
    return cause.code in _SIGTERM or any(_NO_ROOM.match(word) for word in cause.reasons)
