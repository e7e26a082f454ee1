"""Whether the attempt has come to its good end."""

from __future__ import annotations

from everstep_operator.reconcile import classify, failure
from everstep_operator.reconcile.attempt import Attempt
from everstep_operator.reconcile.observation import Observation


def succeeded(observation: Observation, attempt: Attempt) -> bool:
    """Every pod's trainer ended with 0. One that is gone, or goes, counts where it was seen to succeed before, or the
    library says that the training ended."""
    if not (attempt.launched or attempt.claimed) or not all(classify.done(pod) for pod in attempt.pods):
        return False
    cleared = attempt.lost or any(pod.deleting and pod.index not in attempt.succeeded for pod in attempt.pods)
    return not cleared or failure.has_finished(observation, attempt)
