"""A hold on a checkpoint for as long as somebody reads it."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from everstep.catalog.documents import Entry
from everstep.catalog.job import JobCatalog
from everstep.errors import CheckpointError

log = logging.getLogger("everstep")

HOLD = timedelta(hours=24)
"""For how long a reader that dies keeps its checkpoint from being removed."""


@contextlib.contextmanager
def held(job: JobCatalog, entry: Entry, reader: str) -> Iterator[None]:
    """Retention keeps its hands off, as it does anyway of what is set aside. Who may only read, or finds the register
    full, goes without, and is told if the checkpoint vanishes. `reader`: what it is read for, such as `export`."""
    if entry.state != "live":
        yield
        return
    by = f"{reader} by process {os.getpid()} on {platform.node()}"
    try:
        job.hold(entry.location, by, datetime.now(UTC) + HOLD)
    except CheckpointError as error:
        log.warning("the checkpoint is not held while it is read: %s", error)
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(CheckpointError):
            job.release(entry.location, by)
