"""The rendezvous service's address, which the pods of a gang were built with and cannot learn anew.

A service that somebody deletes is put back under the same address. Where that is taken by now, the gang could never
meet again after a restart in place: it is replaced at once, rather than found hanging some day.
"""

from __future__ import annotations

from collections import Counter

from everstep_operator.build import Launch
from everstep_operator.reconcile.attempt import Attempt
from everstep_operator.reconcile.classify import Cause
from everstep_operator.reconcile.observation import Observation

REASON = "RendezvousMoved"


def address(observation: Observation, attempt: Attempt) -> str | None:
    """The one that the service has, or is to have again; None where any will do."""
    standing = next((found.cluster_ip for found in observation.services if found.cluster_ip), None)
    return standing or next(iter(_known(attempt)), None)


def moved(observation: Observation, attempt: Attempt) -> Cause | None:
    """The cause, where the attempt's pods look for each other at an address that is not the service's: all of them, as
    one that tells of another may have been edited by hand."""
    known = _known(attempt)
    found = next((each for each in observation.services if each.attempt == attempt.number and each.cluster_ip), None)
    if not known or found is None or found.cluster_ip in known:
        return None
    message = f"the service {found.name} was deleted and is at {found.cluster_ip} now; the pods know it at {known[0]}"
    return Cause(REASON, message, reasons=frozenset({REASON}))


def _known(attempt: Attempt) -> list[str]:
    """What the pods were built with, by their annotations, the most frequent first."""
    if attempt.ended:
        return []
    built = (Launch.read(pod.attempt, pod.annotations) for pod in attempt.pods)
    told = Counter(found.rendezvous for found in built if found is not None and found.rendezvous is not None)
    return [address for address, _ in told.most_common()]
