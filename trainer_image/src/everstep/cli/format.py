"""How figures are written for people."""

from __future__ import annotations

import re
from datetime import datetime

from everstep.cli.common import WrongCallError

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def size(count: int) -> str:
    """Bytes with three significant digits: 1.21 GiB."""
    value = float(count)
    for unit in UNITS:
        if value < 1024 or unit == UNITS[-1]:
            return f"{count} B" if unit == "B" else f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def bytes_of(size: str) -> int:
    """500MB, 2GiB or a number of bytes. Raises WrongCallError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kKMGT]?)(i?)B?", size)
    if match is None or not float(match[1]):
        raise WrongCallError(f"{size!r} is no size: such as 500MB or 2GiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " "))


def time(moment: datetime, seconds: bool = True) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")


def count(number: int, noun: str) -> str:
    """1 checkpoint, 2 checkpoints."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def seconds_of(span: str) -> float:
    """90s, 45m, 36h, 7d, 2w in seconds. Raises WrongCallError."""
    number, unit = span[:-1], span[-1:]
    if unit not in SPANS or not number.replace(".", "", 1).isdigit():
        raise WrongCallError(f"{span!r} is no time: a number with s, m, h, d or w, such as 36h")
    return float(number) * SPANS[unit]
