"""Pages of docs/ with a part that a benchmark generates."""

from __future__ import annotations


def put(text: str, begin: str, end: str, generated: str) -> str:
    """The page with what is between its marks replaced. Raises ValueError where they are missing."""
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no part between {begin} and {end}")
    return f"{head}{begin}\n\n{generated}\n\n{end}{tail}"
