"""Pages of docs/ with a part that a benchmark generates."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence


def put(text: str, begin: str, end: str, generated: str) -> str:
    """The page with what is between its marks replaced. Raises ValueError where they are missing."""
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no part between {begin} and {end}")
    return f"{head}{begin}\n\n{generated}\n\n{end}{tail}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, least and most."""
    if not values:
        return "–"
    middle, least, most = (f"{each:.{digits}f}" for each in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least} to {most})"
