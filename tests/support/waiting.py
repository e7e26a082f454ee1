"""How tests wait: until something is so, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

FIRST, SHARE, MOST = 0.05, 0.05, 0.25
"""Seconds between two looks: at first, as a share of what has been waited, and at most. A look may cost more than what
is looked at."""


def wait_for(what: str, found: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `found` returns once it is true; fails with `what` after `seconds`."""
    began = time.monotonic()
    while True:
        value = found()
        if value:
            return value
        waited = time.monotonic() - began
        assert waited < seconds, f"after {seconds:g} s still not: {what}"
        time.sleep(min(max(FIRST, waited * SHARE), MOST))
