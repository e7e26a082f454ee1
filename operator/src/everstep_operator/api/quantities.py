"""Kubernetes quantities (`4Gi`) to bytes, and bytes to what a person reads (`1.2 GiB`)."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

from pydantic import StringConstraints

_PATTERN = r"^[0-9]+(\.[0-9]{1,9})?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$"
Quantity = Annotated[str, StringConstraints(min_length=1, max_length=32, pattern=_PATTERN)]
"""An amount of bytes: a number, with a suffix of Ki, Mi, Gi, Ti, Pi (powers of 1024) or k, M, G, T, P (of 1000)."""

_UNITS = {"": 1} | {s: 1000**n for n, s in enumerate("kMGTP", 1)} | {f"{s}i": 1024**n for n, s in enumerate("KMGTP", 1)}
_SPLIT = re.compile(r"^([0-9.]+)([A-Za-z]*)$")


def quantity_bytes(quantity: str) -> int:
    """The bytes of a quantity, rounded up. Raises ValueError for anything else."""
    found = _SPLIT.match(quantity)
    if not found or not re.match(_PATTERN, quantity):
        raise ValueError(f"{quantity!r} is no quantity of bytes such as 512Mi or 4Gi")
    amount = Decimal(found[1]) * _UNITS[found[2]]
    return int(amount.to_integral_value(rounding="ROUND_CEILING"))


def format_bytes(count: int) -> str:
    """Three digits or so with a binary unit: `0 B`, `1.2 GiB`, `37 MiB`."""
    amount, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if amount < 1023.5 or unit == "PiB":
            break
        amount /= 1024
    return f"{amount:.1f} {unit}" if unit != "B" and amount < 9.95 else f"{amount:.0f} {unit}"
