"""Who fetches what: all ranks' needs in, one list of pieces out, the same on every rank.

The unit is the block that one checksum covers, so that who fetches a piece can verify it alone. A block that several
ranks need (a replicated tensor, the shard of an HSDP replica, the row at which two shards meet) is fetched once, by
that one of them which has least to fetch, and handed to the others. What a rank has ahead it hands to whoever needs it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from everstep.catalog.manifest import BLOCK
from everstep.checkpoint.restoring.targets import Range

PIECE = 16 << 20
"""Bytes that are fetched, and handed on, at a time."""
SHARE = 1 << 20
"""What several ranks need is cut no smaller than this to share the fetching out among them."""
SMALL = 1 << 20
"""Less than this is not worth a request of its own: of the slices of many small tensors, which lie side by side and are
different ranks', one rank fetches many at a time, and hands on what others need."""
ROUND = 64 << 20
"""Bytes that one rank fetches for others before they are handed round. It holds twice as many: those, and the next."""

Needs = Mapping[int, Sequence[Range]]
"""By the number of a file the ranges that one rank needs: whole blocks, ascending, apart from each other."""

_Segment = tuple[int, int, tuple[int, ...]]
"""Bytes [start, end) that the same ranks need."""

_Shared = tuple[int, list[_Segment], list[int]]
"""A file, what one rank fetches of it for others, and who has that already."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [start, end) of a file, whole blocks, which `reader` fetches for all `members`. It is one of them, even
    where it needs nothing of them itself."""

    file: int
    start: int
    end: int
    reader: int
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Division:
    own: list[Piece]
    """What this rank alone needs; not cut into pieces yet."""
    rounds: list[list[Piece]]
    """What several ranks need, and what lies between: the same lists on all ranks."""


def blocks(ranges: Iterable[Range], size: int) -> list[Range]:
    """The whole blocks of a file of `size` bytes that the ranges touch."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        start, end = start // BLOCK * BLOCK, min(size, -(-end // BLOCK) * BLOCK)
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def divide(
    needs: Sequence[Needs],
    rank: int,
    piece: int = PIECE,
    most: int = ROUND,
    holders: Mapping[int, Sequence[int]] | None = None,
    ahead: Sequence[tuple[int, int] | None] = (),
) -> Division:
    """`needs` by rank; `piece` and `most` in bytes, whole blocks. `holders`: by file the ranks that can read it (None:
    all can read all); one of them reads for those that cannot, whether it needs the bytes itself or not. `ahead`: by
    rank a file and up to where it has that already."""
    own: list[Piece] = []
    there: list[_Shared] = []
    missing: list[_Shared] = []
    load = [0] * len(needs)
    for file in sorted(set().union(*needs)):
        fronts = {member: each[1] for member, each in enumerate(ahead) if each is not None and each[0] == file}
        cuts = set(fronts.values())
        for segments in _neighbours(_segments([each.get(file, ()) for each in needs], cuts), piece, cuts):
            start, end, members = segments[0]
            able = members if holders is None else holders[file]
            has = [member for member, front in fronts.items() if segments[-1][1] <= front]
            shared = there if has else missing
            if len(segments) > 1:
                shared.append((file, segments, has))
            elif len(members) > 1 or members[0] not in (has or able):
                step = min(piece, max(SHARE, -(-(end - start) // (len(members) * BLOCK)) * BLOCK))
                shared += [(file, [(at, min(at + step, end), members)], has) for at in range(start, end, step)]
            else:
                load[members[0]] += end - start
                if members[0] == rank:
                    own.append(Piece(file, start, end, rank, members))
    rounds: list[list[Piece]] = [[]]
    held: dict[int, int] = defaultdict(int)
    for file, segments, has in (*there, *missing):
        size = segments[-1][1] - segments[0][0]
        everybody = sorted({member for _, _, members in segments for member in members})
        able = everybody if holders is None else [each for each in everybody if each in holders[file]] or holders[file]
        reader = min(has or able, key=lambda member: load[member])
        load[reader] += size
        held[reader] += size
        if held[reader] > most:
            rounds.append([])
            held = defaultdict(int, {reader: size})
        for start, end, members in segments:
            rounds[-1].append(Piece(file, start, end, reader, tuple(sorted({*members, reader}))))
    return Division(own, rounds)


def _neighbours(segments: Iterable[_Segment], most: int, cuts: Set[int]) -> Iterable[list[_Segment]]:
    """Small segments that lie side by side, up to `most` bytes in all and with no cut between, and each other one by
    itself."""
    found: list[_Segment] = []
    for segment in segments:
        start, end, _ = segment
        small = end - start < SMALL
        beside = found and start == found[-1][1] and start not in cuts
        if found and not (small and beside and end - found[0][0] <= most):
            yield found
            found = []
        if small:
            found.append(segment)
        else:
            yield [segment]
    if found:
        yield found


def _segments(by_rank: Sequence[Sequence[Range]], cuts: Iterable[int] = ()) -> Iterable[_Segment]:
    """Stretches in which the same ranks need all bytes, and in which no cut lies."""
    changes: dict[int, list[int]] = defaultdict(list, {at: [] for at in cuts})
    for rank, ranges in enumerate(by_rank):
        for start, end in ranges:
            changes[start].append(rank)
            changes[end].append(rank)
    members: set[int] = set()
    before = 0
    for at in sorted(changes):
        if members:
            yield before, at, tuple(sorted(members))
        members ^= set(changes[at])
        before = at
