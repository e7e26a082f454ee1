"""How often a guard tries, and where it writes what it found at full size."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.about import machine
from dev.paths import REPOSITORY

FULL = os.environ.get("EVERSTEP_GUARDS") == "full"
RESULTS = REPOSITORY / "benchmarks" / "guards" / "results"


def times(full: int, quick: int) -> int:
    return full if FULL else quick


def record(name: str, **found: Any) -> None:
    """Kept for docs/guarantees.md, where it was the full size."""
    if FULL:
        RESULTS.mkdir(parents=True, exist_ok=True)
        document = {"about": machine(), **found}
        (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def folder(otherwise: Path) -> Path:
    """For files that are kept where the guard has its full size."""
    if FULL:
        RESULTS.mkdir(parents=True, exist_ok=True)
    return RESULTS if FULL else otherwise
