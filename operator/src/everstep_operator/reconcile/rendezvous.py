"""The rendezvous service's address, which the pods of a gang were built with and cannot learn anew.

A service that somebody deletes is put back under the same address. Where that is taken by now, the gang could never
meet again after a restart in place: it is replaced at once, rather than found hanging some day.
"""

from __future__ import annotations

from everstep_operator.reconcile.attempt import Attempt, launched_with
from everstep_operator.reconcile.classify import Cause
from everstep_operator.reconcile.observation import Observation

REASON = "RendezvousMoved"


def address(observation: Observation, attempt: Attempt) -> str | None:
    """The one that the service has, or is to have again; None where any will do."""
    standing = next((found.cluster_ip for found in observation.services if found.cluster_ip), None)
    return standing or _known(attempt)


def moved(observation: Observation, attempt: Attempt) -> Cause | None:
    """The cause, where the attempt's pods look for each other at an address that is not the service's."""
    known = _known(attempt)
    found = next((each for each in observation.services if each.attempt == attempt.number and each.cluster_ip), None)
    if known is None or found is None or found.cluster_ip == known:
        return None
    message = f"the service {found.name} was deleted and is at {found.cluster_ip} now; the pods know it at {known}"
    return Cause(REASON, message, reasons=frozenset({REASON}))


def _known(attempt: Attempt) -> str | None:
    built = launched_with(attempt.pods) if not attempt.ended else None
    return built.rendezvous if built is not None else None
