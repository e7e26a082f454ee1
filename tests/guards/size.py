"""How often a guard tries, and where it writes what it found at full size."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.about import machine
from dev.paths import REPOSITORY

ASKED = os.environ.get("EVERSTEP_GUARDS", "")
"""`full`; a part of it, such as 0.2; or nothing: small counts, and nothing is recorded."""
PART = 1.0 if ASKED == "full" else float(ASKED or 0)
RESULTS = REPOSITORY / "benchmarks" / "guards" / "results"
SECONDS = 3600 if PART else 300
"""A test's limit."""


def times(full: int, quick: int) -> int:
    return max(quick, round(full * PART))


def record(name: str, **found: Any) -> None:
    """Kept for docs/guarantees.md, unless the counts are the small ones."""
    if PART:
        RESULTS.mkdir(parents=True, exist_ok=True)
        document = {"about": machine(), **found}
        (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def folder(otherwise: Path) -> Path:
    """For files that are kept with what was recorded."""
    if PART:
        RESULTS.mkdir(parents=True, exist_ok=True)
    return RESULTS if PART else otherwise
