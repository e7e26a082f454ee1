"""Failures that are nobody's fault: they are not held against the job, however many there are."""

from __future__ import annotations

import re
from datetime import timedelta

from everstep_operator.reconcile import classify, rendezvous, starting
from everstep_operator.reconcile.attempt import Attempt, committed
from everstep_operator.reconcile.classify import STOPPED, Cause
from everstep_operator.reconcile.observation import Observation

REASONS = frozenset(
    {
        "ContainerStatusUnknown",
        "NodeLost",
        "NodeShutdown",
        "PodDeleted",
        "Preempting",
        rendezvous.REASON,
        STOPPED,
        "Terminated",
        "UnexpectedAdmissionError",
        classify.REJECTED,
        classify.UNKNOWN,
        starting.REASON,
    }
)
"""Words of this operator and of kubelets. `Evicted` is not among them: a pod that the kubelet evicts for its node's
sake has the condition DisruptionTarget, one that used more than it asked for has not."""
_SIGTERM = (-15, 143)
SIGN = timedelta(seconds=60)
"""How long after a SIGTERM a sign of its sender may still come: a node that shuts down without telling anybody is
called unready 50 s later."""
FORGIVEN = 3
"""SIGTERMs in a row without a sign of their sender that are forgiven. A liveness probe that fails at every long step
looks the same, attempt after attempt: the kubelet tells nobody why it stops a container."""
_NO_ROOM = re.compile(r"OutOf[a-z]")
"""A kubelet without room for a pod that it was given: OutOfcpu, OutOfnvidia.com/gpu; no script's OutOfMemoryError."""


def is_one(cause: Cause, asked: bool) -> bool:
    """A drained, preempted, evicted or deleted pod, a lost node, SIGTERM, a start that came to nothing.

    `asked`: somebody may have sent that SIGTERM, see `may_be_asked`.
    """
    words = _words(cause)
    if not words.isdisjoint(REASONS - {STOPPED}) or ("DisruptionTarget", "True") in cause.conditions:
        return True
    if _is_sigterm(cause):
        return asked
    return any(_NO_ROOM.match(word) for word in cause.reasons)


def _words(cause: Cause) -> frozenset[str]:
    return frozenset() if cause.weight == classify.ROOT else cause.reasons | {cause.reason}  # no script's exception


def _is_sigterm(cause: Cause) -> bool:
    return cause.code in _SIGTERM or STOPPED in _words(cause)


def may_become_clear(observation: Observation, cause: Cause) -> bool:
    """Whether it is too early to say that nobody sent the SIGTERM; never where the node's clock is far off."""
    return _is_sigterm(cause) and cause.fault is not None and abs(observation.now - cause.fault) < SIGN


def may_be_asked(observation: Observation, attempt: Attempt) -> bool:
    """Whether a SIGTERM that ended the attempt can have come from outside.

    A pod or a node of it is on its way out, or it had committed something, as whoever heeds SIGTERM does, and that is
    not how attempt after attempt has ended: a script that ends with 143 by itself would else be started again for ever.
    """
    gang = observation.job.status.gang
    leaving = attempt.recorded and (bool(attempt.lost) or (gang is not None and gang.leaving is not None))
    nodes = {node.name for node in observation.nodes if not node.healthy}
    if leaving or any(pod.deleting or pod.node in nodes or classify.is_disrupted(pod) for pod in attempt.pods):
        return True
    if observation.stored.problem is not None:
        return True
    return committed(observation, attempt.number) and not _is_habit(observation)


def _is_habit(observation: Observation) -> bool:
    last = observation.job.status.history[-FORGIVEN:]
    return len(last) == FORGIVEN and all(entry.reason == STOPPED or entry.code in _SIGTERM for entry in last)
