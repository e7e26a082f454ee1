"""Metrics and logs of a real operator while a job crashes, comes back, ends and is deleted."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.operator_process import OperatorProcess
from tests.support.rig import Rig
from tests.support.waiting import wait_for
from tests.trainers.lite import Options

QUICK = Options(total_steps=30, seconds_per_step=0.02, save_every=10, heartbeat_seconds=0.2)
OWN = (
    "everstep_operator.act",
    "everstep_operator.observe",
    "everstep_operator.reconciler",
    "everstep_operator.storage",
)
"""Modules that speak of jobs only."""


def lines(operator: OperatorProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in operator.log.read_text().splitlines()]


def port(operator: OperatorProcess) -> int:
    told = (line["message"].split() for line in lines(operator) if line["message"].startswith("serving probes"))
    return int(next(told)[-1])


def samples(operator: OperatorProcess) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port(operator)}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_metrics_and_logs_tell_a_jobs_life(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    rig.operator.settings = {"LOG_FORMAT": "json"}
    rig.options[1] = replace(QUICK, crash_step=25, crash_code=9)
    rig.options[0] = QUICK
    with rig.kubelet:
        rig.operator.start()
        rig.apply(failurePolicy={"backoff": {"initialSeconds": 0, "maxSeconds": 0}})
        rig.until_phase("Succeeded")
        job = {"namespace": rig.namespace, "job": "job"}

        def value(name: str, **labels: str) -> float | None:
            return samples(rig.operator).get((name, frozenset(labels.items())))

        assert value("everstep_job_phase", **job, phase="Succeeded") == 1
        assert value("everstep_job_phase", **job, phase="Running") is None
        assert value("everstep_job_attempt", **job) == 2
        assert value("everstep_job_restarts_total", **job, kind="counted") == 1
        assert value("everstep_job_last_committed_step", **job) == 30
        assert value("everstep_job_commits_total", **job) == 3
        assert value("everstep_commits_total") == 3
        assert value("everstep_committed_bytes_total") == sum(entry.bytes for entry in rig.catalog().checkpoints)
        assert value("everstep_restarts_total", reason="Error") == 1
        assert value("everstep_fences_total") == 2
        assert (value("everstep_storage_request_seconds_count", kind="swap_register", result="ok") or 0) >= 2
        created = value("everstep_kubernetes_requests_total", verb="create", resource="pods", code="201")
        assert created == 5, "two pods an attempt, and a dry run before the first"
        assert (value("everstep_queue_seconds_count") or 0) > 2
        assert (value("everstep_kubernetes_requests_total", verb="update", resource="leases", code="200") or 0) > 0

        rig.delete()
        wait_for("its series are gone", lambda: value("everstep_job_attempt", **job) is None)
        assert not any(("job", "job") in labels for _, labels in samples(rig.operator))
        assert value("everstep_jobs") == 0

    about = [line for line in lines(rig.operator) if line["logger"].startswith(OWN)]
    assert len(about) > 10
    assert [line for line in about if (line.get("namespace"), line.get("job")) != (rig.namespace, "job")] == []
    events = {line["message"].split(":")[0]: line.get("attempt") for line in about if "events" in line["logger"]}
    assert {"GangCreated", "GangFailed", "Succeeded"} <= events.keys()
    assert events["Succeeded"] == 2
    failed = next(line for line in about if line["message"].startswith("GangFailed"))
    assert failed["attempt"] == 1


def test_a_standby_forgets_jobs_that_are_deleted(rig: Rig) -> None:
    rig.options[0] = QUICK
    settings = {"LOG_FORMAT": "json", "RESYNC_SECONDS": "1"}
    wait_for("the Lease is held", lambda: "holding the Lease" in rig.operator.tail())
    standby = replace(rig.operator, identity="operator-1", process=None, settings=settings).start()

    def known() -> float:
        return samples(standby)[("everstep_queue_keys", frozenset())]

    try:
        wait_for("it stands by", lambda: "serving probes" in standby.tail())
        for number in range(4):
            rig.apply(f"job-{number}", nodes=1)
        wait_for("it knows them", lambda: known() == 4)
        for number in range(4):
            rig.until_phase("Succeeded", name=f"job-{number}")
            rig.delete(f"job-{number}")
        wait_for("it has forgotten them", lambda: known() == 0)
        assert samples(standby)[("everstep_leader", frozenset())] == 0
        assert samples(standby)[("everstep_queue_depth", frozenset())] == 0
    finally:
        standby.kill()
