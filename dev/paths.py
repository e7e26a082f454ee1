"""Where things live: nothing of the embedded cluster is outside the cache but temporary files and a lock."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SLOTS_LOCK = Path("/run/lock/everstep-slots.lock")
"""Held while addresses of a full instance are chosen: they are the machine's, whatever the cache directory."""
TOOLS = Path(__file__).resolve().parent / "tools"


def cache() -> Path:
    """The cache directory: `EVERSTEP_CACHE`, or `~/.cache/everstep`."""
    given = os.environ.get("EVERSTEP_CACHE")
    if given:
        return Path(given).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "everstep"


def instances() -> Path:
    """The directory that holds one state directory an instance."""
    return cache() / "instances"
