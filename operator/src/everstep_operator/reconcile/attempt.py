"""Which attempt is in force, and what is known of it.

Three witnesses: the status (written last), the catalog (fenced first) and the pods in between. An attempt that the
status does not know was fenced by a pass that did not get to its end: it is gone on with, so that no number is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from everstep.catalog import Catalog, Owner
from everstep.catalog.transitions import check_owner
from everstep.errors import OwnerConflictError
from everstep_operator.api.status import HistoryEntry
from everstep_operator.build import Launch
from everstep_operator.reconcile.observation import Observation, PodView

ADOPTED = ("true", "yes", "1", "")


@dataclass(frozen=True)
class Attempt:
    """The attempt in force; number 0 before the first."""

    number: int
    recorded: bool
    """The status knows that its whole gang was created: from then on a missing pod is a failure."""
    end: HistoryEntry | None
    """How it ended, once that is recorded."""
    pods: tuple[PodView, ...]
    """Of this attempt, one an index."""
    others: tuple[PodView, ...]
    """Of every other attempt."""
    nodes: int
    """Pods that it has, or is to have."""
    claimed: bool
    """A worker group of it has claimed the catalog."""
    succeeded: frozenset[int] = frozenset()
    """Indices of pods that were seen to succeed, whether or not they are there still."""

    @property
    def ended(self) -> bool:
        return self.end is not None

    @cached_property
    def missing(self) -> tuple[int, ...]:
        present = {pod.index for pod in self.pods}
        return tuple(index for index in range(self.nodes) if index not in present)

    @cached_property
    def lost(self) -> tuple[int, ...]:
        """Missing pods that were not seen to succeed."""
        return tuple(index for index in self.missing if index not in self.succeeded)

    @property
    def launched(self) -> bool:
        """Whether all of its pods have existed."""
        return self.recorded or (self.number > 0 and not self.missing)

    @property
    def abandoned(self) -> bool:
        """Fenced, or partly created, by a pass that did not get to its end."""
        return self.number > 0 and not self.ended and not self.launched


def own(observation: Observation) -> Catalog | None:
    """The catalog, if this very job has fenced it."""
    catalog = observation.stored.catalog
    if catalog is None or catalog.owner is None or _identity(catalog.owner) != _identity(owner(observation)):
        return None
    return catalog


def _identity(owner: Owner) -> tuple[str, str, str, str]:
    return owner.cluster, owner.namespace, owner.name, owner.uid


def owner(observation: Observation) -> Owner:
    meta = observation.job.metadata
    return Owner(cluster=observation.cluster, namespace=meta.namespace, name=meta.name, uid=meta.uid)


def adopts(observation: Observation) -> bool:
    value = observation.job.metadata.annotations.get("everstep.dev/adopt")
    return value is not None and value.lower() in ADOPTED


def conflict(observation: Observation) -> str | None:
    """Why another's catalog keeps this job from its root; None where nothing does."""
    if observation.stored.catalog is None:
        return None
    try:
        check_owner(observation.stored.catalog, owner(observation), adopts(observation))
    except OwnerConflictError as error:
        return str(error)
    return None


def current(observation: Observation) -> Attempt:
    status = observation.job.status
    catalog = own(observation)
    fenced = catalog.attempt if catalog else 0
    number = max([status.attempt, fenced, *(pod.attempt for pod in observation.pods)])
    pods = tuple(sorted((pod for pod in observation.pods if pod.attempt == number), key=lambda pod: pod.index))
    recorded = 0 < number <= status.attempt
    end = next((entry for entry in status.history if entry.attempt == number and number > 0), None)
    gang = status.gang if recorded else None
    return Attempt(
        number=number,
        recorded=recorded,
        end=end,
        pods=pods,
        others=tuple(pod for pod in observation.pods if pod.attempt != number),
        nodes=_nodes(observation, number, recorded, pods),
        claimed=catalog is not None and catalog.claim is not None and catalog.claim.attempt == number,
        succeeded=frozenset((gang.succeeded if gang is not None else None) or ()),
    )


def _nodes(observation: Observation, number: int, recorded: bool, pods: tuple[PodView, ...]) -> int:
    """The size that the gang was created with: the spec may have changed since."""
    spec, gang = observation.job.spec, observation.job.status.gang
    if recorded and gang is not None and gang.nodes is not None:
        return gang.nodes
    launch = launched_with(pods)
    if launch is not None:
        return launch.nodes
    before = next((entry for entry in reversed(observation.job.status.history) if entry.attempt < number), None)
    if spec.elastic is None or before is None or before.next_nodes is None:
        return spec.nodes
    return min(spec.nodes, max(spec.elastic.min_nodes, before.next_nodes))


def launched_with(pods: tuple[PodView, ...]) -> Launch | None:
    """What the pods of an attempt were built with, as their annotations say."""
    return next((found for pod in pods if (found := Launch.read(pod.attempt, pod.annotations)) is not None), None)


def next_number(observation: Observation) -> int:
    """The least number that a new attempt may have; the fence itself goes above the catalog's."""
    return 1 + max([observation.job.status.attempt, *(pod.attempt for pod in observation.pods)])


def committed(observation: Observation, number: int) -> bool:
    """Whether an attempt has committed a checkpoint. Retention always leaves the latest, so none is overlooked."""
    catalog = own(observation)
    if catalog is not None and any(entry.attempt == number for entry in catalog.checkpoints):
        return True
    last = observation.job.status.last_checkpoint
    return last is not None and last.attempt == number
