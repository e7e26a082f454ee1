"""Tables of text. rich needs a millisecond a row, and `everstep ls` prints ten thousand of them in two seconds."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

GAP = "  "
LEAST = 12
"""Characters that the last column keeps however narrow the terminal is."""


def width() -> int | None:
    """Of the terminal; None where lines go into a file or a pipe, and nothing is to be wrapped."""
    if "COLUMNS" not in os.environ and not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], room: int | None) -> Iterator[str]:
    """Lines at most `room` wide: the last column is wrapped. A header that begins with > stands over numbers."""
    names = [header.removeprefix(">") for header in headers]
    right = [header.startswith(">") for header in headers]
    cells = [names, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(names) - 1)]
    taken = sum(widths) + len(GAP) * len(widths)
    last = None if room is None else max(LEAST, room - taken)
    for row in cells:
        fixed = [
            text.rjust(size) if to_right else text.ljust(size)
            for text, size, to_right in zip(row, widths, right, strict=False)
        ]
        first, *more = [row[-1]] if last is None or len(row[-1]) <= last else textwrap.wrap(row[-1], last)
        yield GAP.join([*fixed, first]).rstrip()
        yield from (" " * taken + line for line in more)


def facts(pairs: Iterable[tuple[str, object]], room: int | None) -> Iterator[str]:
    """Names with their values; those without a value are left out."""
    rows = [(name, str(value)) for name, value in pairs if value is not None and value != ""]
    size = max(len(name) for name, _ in rows) + len(GAP)
    for name, value in rows:
        last = None if room is None else max(LEAST, room - size)
        first, *more = [value] if last is None or len(value) <= last else textwrap.wrap(value, last)
        yield f"{name.ljust(size)}{first}"
        yield from (" " * size + line for line in more)
