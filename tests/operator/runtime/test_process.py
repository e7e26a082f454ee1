"""The operator as a process: one of two replicas acts, a clean end hands over, at rest it writes its Lease alone."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.plugins.audit import Request
from tests.support.operator_process import OperatorProcess
from tests.support.rig import Rig
from tests.support.waiting import wait_for
from tests.trainers.lite import Options, chain

LONG = Options(total_steps=400, seconds_per_step=0.05, save_every=100, heartbeat_seconds=0.5)
FIXED = Options(total_steps=2, seconds_per_step=0, save_every=1, hang_step=1, heartbeat_seconds=3600)
"""Beats once and then stands still."""
JOBS = 20
QUIET_SECONDS = float(os.environ.get("EVERSTEP_QUIET_SECONDS", "20"))
"""How long nothing may be written; 600 is the claim that the docs make."""


def second(rig: Rig) -> OperatorProcess:
    return replace(rig.operator, identity="operator-1", process=None)


def holder(rig: Rig) -> str:
    lease = rig.kubelet.leases.read_namespaced_lease("everstep-operator", rig.namespace)
    return str(lease.spec.holder_identity)


def test_a_standby_takes_over_when_the_holder_dies(rig: Rig) -> None:
    rig.options[0] = replace(LONG, total_steps=10_000)
    rig.apply()
    rig.until_phase("Running")  # before that is recorded, a pod that goes away is made again
    standby = second(rig).start()
    try:
        wait_for("it stands by", lambda: "serving probes" in standby.tail())
        rig.operator.kill()
        killed = time.monotonic()
        rig.core.delete_namespaced_pod("job-1-1", rig.namespace, grace_period_seconds=0)
        wait_for("the standby holds the Lease", lambda: holder(rig) == "operator-1", 15)
        rig.until_running(2)
        assert time.monotonic() - killed < 15
        wait_for("the status tells", lambda: rig.status()["attempt"] == 2)
    finally:
        standby.kill()


def test_a_clean_end_releases_the_lease_and_the_standby_acts_at_once(rig: Rig) -> None:
    rig.options[0] = LONG
    wait_for("the Lease is held", lambda: "holding the Lease" in rig.operator.tail())
    standby = second(rig).start()
    try:
        wait_for("it stands by", lambda: "serving probes" in standby.tail())
        assert rig.operator.stop() == 0
        assert "released the Lease" in rig.operator.tail()
        wait_for("the standby holds the Lease", lambda: holder(rig) == "operator-1", 3)
        rig.apply()
        rig.until_running(1)
    finally:
        standby.kill()


def test_a_holder_that_is_stopped_acts_no_more_when_it_goes_on(rig: Rig) -> None:
    rig.options[0] = replace(LONG, total_steps=10_000)
    rig.apply()
    rig.until_phase("Running")  # before that is recorded, a pod that goes away is made again
    standby = second(rig).start()
    try:
        assert rig.operator.process is not None
        rig.operator.process.send_signal(signal.SIGSTOP)
        rig.core.delete_namespaced_pod("job-1-1", rig.namespace, grace_period_seconds=0)
        wait_for("the standby holds the Lease", lambda: holder(rig) == "operator-1", 20)
        rig.until_running(2)
        rig.operator.process.send_signal(signal.SIGCONT)
        assert rig.operator.process.wait(timeout=30) == 1
        assert holder(rig) == "operator-1"
        assert rig.catalog().attempt == 2
    finally:
        standby.kill()


def test_a_restart_of_the_operator_disturbs_no_running_job(rig: Rig) -> None:
    rig.options[0] = replace(LONG, total_steps=120, save_every=20)
    rig.apply()
    rig.until_running(1)
    rig.operator.kill()
    rig.operator.start()
    status = rig.until_phase("Succeeded")
    assert status["attempt"] == 1
    assert rig.kubelet.container("job-1-0").run.state == chain(120)


@pytest.mark.timeout(QUIET_SECONDS + 280)
def test_running_jobs_at_rest_cost_no_write_but_the_lease(rig: Rig) -> None:
    rig.options[0] = FIXED
    for number in range(JOBS):
        rig.apply(f"job-{number}", nodes=1, failurePolicy={"stallTimeoutSeconds": 0})
    for number in range(JOBS):
        rig.until_phase("Running", name=f"job-{number}", seconds=90)
    wait_for("progress was written", lambda: all(rig.status(f"job-{n}").get("progress") for n in range(JOBS)))
    audit = rig.cluster.audit

    def writes(position: int) -> list[Request]:
        return [each for each in audit.writes(position, agent="everstep-operator") if each.namespace == rig.namespace]

    def others(position: int) -> list[Request]:
        return [each for each in writes(position) if each.resource != "leases"]

    def quiet_for_a_while() -> bool:
        position = audit.position()
        time.sleep(3)
        return not others(position)

    wait_for("what was on its way has ended", quiet_for_a_while)
    position = audit.position()
    time.sleep(QUIET_SECONDS)
    assert others(position) == []
    assert len(writes(position)) >= QUIET_SECONDS / 3, "the Lease is renewed"


def test_probes_and_metrics(rig: Rig) -> None:
    rig.options[0] = replace(LONG, total_steps=20, save_every=10)
    rig.apply()
    rig.until_phase("Succeeded")
    line = next(line for line in rig.operator.tail(1000).splitlines() if "serving probes" in line)
    base = f"http://127.0.0.1:{line.split()[-1]}"
    assert get(f"{base}/healthz") == "leading\n"
    assert get(f"{base}/readyz") == "ready\n"
    metrics = get(f"{base}/metrics")
    assert "everstep_fences_total 1.0" in metrics
    assert "everstep_leader 1.0" in metrics


def test_one_dead_endpoint_delays_no_other_job(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    rig.operator.settings = {"CONCURRENCY": "2"}
    rig.options[0] = replace(LONG, total_steps=20, save_every=10)
    with rig.kubelet, rig.black_hole() as dead:
        rig.operator.start()
        for number in range(6):
            rig.apply(f"dead-{number}", endpoint=dead)
        wait_for("they were seen", lambda: all(rig.status(f"dead-{n}") for n in range(6)), 60)
        began = time.monotonic()
        rig.apply("good")
        rig.until_phase("Succeeded", name="good", seconds=60)
        assert time.monotonic() - began < 20
        assert rig.status("dead-0")["phase"] == "Pending"


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())
