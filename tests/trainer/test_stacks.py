"""What hanging ranks are at is kept before their gang ends: real torchrun, real hangs, one that holds Python's lock."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from everstep.catalog import JobCatalog, Owner, open_store
from everstep.catalog.keys import stacks_key
from tests.trainer import gang

SCRIPT = """
import collections, itertools, os, signal, time
signal.signal(signal.SIGTERM, lambda *_: None)  # as a training loop does, which then looks at a flag between two steps

def waits_for_a_peer():
    while True:
        time.sleep(60)

def computes_for_ever_without_letting_go():
    collections.deque(itertools.repeat(0), maxlen=0)

os.write(1, b"hangs\\n")
(computes_for_ever_without_letting_go if os.environ["RANK"] == "1" else waits_for_a_peer)()
"""
OWNER = Owner(cluster="c", namespace="n", name="j", uid="u")
VARIABLES = {"EVERSTEP_ATTEMPT": "1", "HOSTNAME": "job-1-0", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "25"}


def hanging(tmp_path: Path, **environment: str) -> tuple[gang.Gang, JobCatalog]:
    root = str(tmp_path / "root")
    job = JobCatalog(open_store(root))
    job.fence(OWNER)
    (tmp_path / "script.py").write_text(SCRIPT)
    running = gang.start(tmp_path, ["script.py"], root, environment={**VARIABLES, **environment})
    running.wait_for("hangs\nhangs")
    return running, job


def test_the_stacks_of_a_gang_that_was_given_up_are_kept(tmp_path: Path) -> None:
    running, job = hanging(tmp_path)
    job.fence(OWNER)  # the operator begins the next attempt, then deletes the pods
    began = time.monotonic()
    os.kill(running.process.pid, signal.SIGTERM)
    assert running.wait() == 143
    assert time.monotonic() - began < 15, "ranks whose stacks are known are not waited for"
    kept = job.store.get(stacks_key(1, "job-1-0")).decode()
    first, second = kept.split("local rank 1")
    assert "waits_for_a_peer" in first
    assert "computes_for_ever_without_letting_go" in second
    assert kept.strip() in running.log
    assert "everstep: kept as" in running.log


def test_a_planned_stop_leaves_workers_their_time(tmp_path: Path) -> None:
    running, job = hanging(tmp_path, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="4")
    os.kill(running.process.pid, signal.SIGTERM)
    assert running.wait() == 143
    assert list(job.store.list("progress/")) == []
    assert "was given up" not in running.log
