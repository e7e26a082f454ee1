"""Whether a gang has waited for its pods for too long.

It then gives all of them back and waits for its turn: two gangs that each hold half of what both need would else wait
for each other for ever. Their limits differ by a part of themselves, so that one of them gives way first.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from everstep_operator.api import ConditionType
from everstep_operator.reconcile import backoff, conditions, gang
from everstep_operator.reconcile.attempt import Attempt
from everstep_operator.reconcile.classify import Cause
from everstep_operator.reconcile.observation import Observation

REASON = "StartTimeout"
SPREAD = 0.25


def find(observation: Observation, attempt: Attempt) -> Cause | None:
    limit = observation.job.spec.failure_policy.start_timeout_seconds
    since = _since(observation, attempt)
    if not limit or since is None:
        return None
    allowed = limit * (1 + SPREAD * backoff.draw(f"{observation.job.metadata.uid}/{attempt.number}"))
    if observation.now - since < timedelta(seconds=allowed):
        return None
    why = _waiting(observation, attempt)
    message = f"not all pods ran within {limit} s{f': {why[1]}' if why else ''}"
    return Cause(REASON, message[:1024], reasons=frozenset({REASON, why[0]} if why else {REASON}))


def _since(observation: Observation, attempt: Attempt) -> datetime | None:
    """Since when it waits; None where all of its pods have run, or none exists yet and nothing is held.

    The status may not know yet that they run: nobody looked while the operator was away."""
    status = observation.job.status
    if not attempt.lost and all(gang.has_run(pod) for pod in attempt.pods):
        return None
    if attempt.recorded:
        if status.gang is None or status.gang.running is not None:
            return None
        return status.gang.started
    return min((pod.created for pod in attempt.pods if pod.created is not None), default=None)


def _waiting(observation: Observation, attempt: Attempt) -> tuple[str, str] | None:
    """What a pod waits for; else why the API server did not take one, as the last try told."""
    found = gang.waiting(attempt)
    if found is not None:
        return found
    told = observation.job.status.condition(ConditionType.RUNNING)
    if told is None or told.status == "True" or told.reason in conditions.PATIENT:
        return None
    return told.reason, told.message
