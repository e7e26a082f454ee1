"""Stalls: a hang in each phase is found at its limit, and slowness of every kind is taken for none.

The slow run takes a minute; EVERSTEP_SLOW_SAVE_MINUTES=30 makes it a long one, with storage that stalls for minutes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dev.s3 import S3Endpoint
from everstep.catalog import S3Access
from tests.support.rig import Rig
from tests.support.stalling import Stalling
from tests.support.waiting import wait_for
from tests.trainers.lite import Options, chain

QUICK = Options(total_steps=30, seconds_per_step=0.02, save_every=10, heartbeat_seconds=0.2)
LIMIT = 3
FOUND_WITHIN = 8.0
"""Seconds after the limit: a poll, a fence, a busy machine."""
PHASES = ("starting", "restoring", "compiling", "saving", "evaluating", "finished")
MINUTES = float(os.environ.get("EVERSTEP_SLOW_SAVE_MINUTES", "0"))
STALL_SECONDS = 150.0 if MINUTES >= 10 else 10.0


@pytest.mark.parametrize("phase", [*PHASES, "training"])
def test_a_hang_in_each_phase_is_found_within_its_limit(rig: Rig, phase: str) -> None:
    hang: dict[str, Any] = {"hang_step": 15} if phase == "training" else {"hang_phase": phase}
    rig.options[1] = replace(QUICK, evaluate_every=15, **hang)
    rig.options[0] = QUICK
    limits = {name: LIMIT if name == phase else 600 for name in PHASES}
    policy = {"stallTimeoutSeconds": 600 if phase in PHASES else LIMIT, "phaseTimeoutSeconds": limits}
    rig.apply(failurePolicy=policy)
    wait_for("it is found", lambda: rig.status().get("history"), 60)
    found = time.monotonic()
    began = rig.kubelet.container("job-1-0").run.hung
    assert began is not None
    assert found - began <= LIMIT + FOUND_WITHIN
    assert found - began >= LIMIT - 1 or phase == "starting", "that one is counted from when all pods run"
    status = rig.until_phase("Succeeded")
    ended = status["history"][0]
    assert ended["reason"] == "Stalled"
    field = f"phaseTimeoutSeconds.{phase}" if phase in PHASES else "stallTimeoutSeconds"
    assert f"(failurePolicy.{field})" in ended["message"]
    assert rig.kubelet.container("job-2-0").run.state == chain(30)


@pytest.mark.timeout(MINUTES * 60 + 400)
def test_slow_saves_pauses_suspensions_and_storage_that_stalls_cost_no_restart(
    make_rig: Callable[..., Rig], s3_server: S3Endpoint
) -> None:
    """A save takes ten times the interval and longer than a step may; so do evaluations and storage's bad minutes."""
    with Stalling(s3_server.url) as way:
        rig = make_rig(endpoint=way.url)
        rig.kubelet.access = S3Access(way.url, s3_server.region, s3_server.access_key, s3_server.secret_key)
        rig.options[0] = Options(
            total_steps=10**6,
            seconds_per_step=0.1,
            save_every=8,
            save_seconds=8.0,
            evaluate_every=12,
            evaluate_seconds=9.0,
            heartbeat_seconds=0.3,
        )
        rig.operator.start()
        with rig.kubelet:
            limits = dict.fromkeys(PHASES, 60)
            rig.apply(failurePolicy={"stallTimeoutSeconds": 6, "phaseTimeoutSeconds": limits})
            until = time.monotonic() + MINUTES * 60
            rounds = 0
            while rounds < 1 or time.monotonic() < until:
                rounds += 1
                _one_round(rig, way, rounds)
            status = rig.status()
            assert [entry["reason"] for entry in status["history"]] == ["Suspended"] * min(rounds, 10)
            assert (status["restarts"]["total"], status["restarts"]["inPlace"]) == (0, 0)
            live = rig.catalog().live()
            assert live[-1].attempt in (rounds, rounds + 1)
            kept = {entry.attempt for entry in live}
            assert kept <= {rounds - 1, rounds, rounds + 1}, "of the attempt before last one may be among the kept"


def _one_round(rig: Rig, way: Stalling, attempt: int) -> None:
    rig.until_running(attempt)
    _until_commit(rig)
    way.stall()
    time.sleep(STALL_SECONDS)  # the stall itself, not a wait for something
    way.go_on()
    _until_commit(rig)
    rig.patch({"spec": {"suspend": True}})
    rig.until_phase("Suspended", seconds=60)
    history = rig.status()["history"]
    told = "\n".join(entry["message"] for entry in history)
    assert {entry["reason"] for entry in history} == {"Suspended"}, f"{told}\n{rig.operator.tail()}"
    assert rig.catalog().live()[-1].step == rig.kubelet.container(f"job-{attempt}-0").run.step, "it has saved"
    rig.patch({"spec": {"suspend": False}})
    rig.until_running(attempt + 1)


def _until_commit(rig: Rig) -> None:
    """One that is newer than the last that the status tells of."""
    before = (rig.status().get("lastCheckpoint") or {}).get("step", 0)
    wait_for("a commit", lambda: (rig.status().get("lastCheckpoint") or {}).get("step", 0) > before, 90)
