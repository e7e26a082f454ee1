"""Which local save a worker group resumes: a pure function of what the register says and what the nodes have.

The register decides what is committed, and through whom the run came to where it stands. A local save may be resumed
where it was made by the worker group that trained last, or is what that group itself resumed; it is not older than what
is committed; and each rank's part of it is there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from everstep.catalog import Beginning, Location, ResumePoint


@dataclass(frozen=True, slots=True, order=True)
class Offer:
    """One rank's part of a save, as a node has it."""

    location: str
    rank: int
    world_size: int
    claim: str


@dataclass(frozen=True, slots=True, order=True)
class Copy:
    """A rank's part on a node."""

    node: str
    location: str
    rank: int


@dataclass(frozen=True, slots=True)
class Choice:
    """`nodes`: by the rank that wrote it, where the copy of a part lies that is to be used."""

    location: Location
    nodes: tuple[str, ...]


def choose(
    told: Mapping[str, Iterable[Offer]],
    begun: Beginning | None,
    committed: ResumePoint | None,
    homes: Sequence[str],
    bad: Collection[Copy] = (),
) -> Choice | None:
    """The newest save that may be resumed and is whole. `told`: offers by node; `homes`: the node of each rank of the
    new group; `bad`: copies that were found to be damaged."""
    if begun is None:
        return None
    copies: dict[tuple[str, int], dict[int, set[str]]] = {}
    for node, offers in told.items():
        for offer in offers:
            wanted = offer.claim == begun.claim or offer.location == begun.local
            if wanted and Copy(node, offer.location, offer.rank) not in bad and _is_newer(offer.location, committed):
                ranks = copies.setdefault((offer.location, offer.world_size), {})
                ranks.setdefault(offer.rank, set()).add(node)
    whole = [key for key, ranks in copies.items() if set(ranks) == set(range(key[1]))]
    if not whole:
        return None
    location, world_size = max(whole, key=lambda key: Location.parse(key[0]))
    ranks = copies[location, world_size]
    return Choice(Location.parse(location), tuple(_nearest(ranks[rank], rank, homes) for rank in range(world_size)))


def _is_newer(location: str, committed: ResumePoint | None) -> bool:
    """The same step will do where the same group has committed it: it is the same state, and nearer."""
    found = Location.parse(location)
    if committed is None or found.step > committed.step:
        return committed is None or committed.root is not None or _epoch(committed) <= found.epoch
    return committed.root is None and found.step == committed.step and found.epoch == _epoch(committed)


def _epoch(point: ResumePoint) -> int:
    return Location.parse(point.location).epoch


def _nearest(nodes: Collection[str], rank: int, homes: Sequence[str]) -> str:
    """That of the rank which is most likely to need it, where it has a copy."""
    if rank < len(homes) and homes[rank] in nodes:
        return homes[rank]
    return min(nodes)
