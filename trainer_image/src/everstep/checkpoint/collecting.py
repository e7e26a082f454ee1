"""When Python may look for garbage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """For what makes thousands of small objects of which none is garbage. To Python their number is a sign to look
    through everything that torch has ever made: a quarter of a second, for which all ranks wait."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
