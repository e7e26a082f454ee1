"""A save that somebody outside asks for: at the next step boundary, once, and told in the heartbeat."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from everstep.catalog import Heartbeat, JobCatalog, Owner, open_store, read_heartbeat
from everstep.catalog.keys import request_key
from everstep.catalog.progress import Request, write_request
from everstep.checkpoint.environment import JobEnvironment

from .conftest import Job

OWNER = Owner(cluster="c", namespace="n", name="j", uid="u")


def heartbeat(root: Path) -> Heartbeat:
    found = read_heartbeat(open_store(str(root)), 1)
    assert isinstance(found, tuple)
    return found[0]


def test_it_is_saved_at_the_next_step_and_once(job: Callable[..., Job], tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    JobCatalog(store).fence(OWNER)
    environment = JobEnvironment(root=str(tmp_path), attempt=1, job_uid="u", heartbeat_seconds=0.05)
    made = job()
    saved: list[int] = []
    asked_at = None
    with made.checkpointer(tmp_path, interval_steps=1000, environment=environment) as checkpointer:
        for step in checkpointer.steps(40):
            made.step()
            time.sleep(0.02)
            if step == 5:
                store.put(request_key(1), b"nonsense")  # anybody can write there
            if step == 10:
                write_request(store, 1, Request(checkpoint="monday"))
            known = heartbeat(tmp_path) if step > 10 else None
            if asked_at is None and known is not None and known.request == "monday":
                asked_at = step
    saved = [entry.step for entry in JobCatalog(store).require().live()]
    assert asked_at is not None
    assert len(saved) == 2, "the one that was asked for, and the last"
    assert 10 < saved[0] <= asked_at + 3
    assert (heartbeat(tmp_path).request, heartbeat(tmp_path).request_step) == ("monday", saved[0])
