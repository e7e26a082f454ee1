"""Metrics: what is counted once, what vanishes with its job, and that labels stay few whatever tenants write."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from everstep.catalog import Catalog, Entry, Snapshot, open_store
from everstep.catalog.store import SwapRefused
from everstep_operator.api import TrainingJobStatus
from everstep_operator.api.status import HistoryEntry, Phase, Recovery, RecoverySeconds, Restarts
from everstep_operator.job_metrics import JobSeries
from everstep_operator.kube import asked
from everstep_operator.memory import Memories
from everstep_operator.metrics import Metrics
from everstep_operator.storage.measured import MeasuredStore
from tests.support.observations import beat
from tests.support.trainingjobs import full_status as status

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def entry(seq: int, size: int = 100) -> Entry:
    location = f"checkpoints/step_{seq * 10:012}-000001-{seq:012x}"
    return Entry(seq=seq, step=seq * 10, epoch=1, attempt=1, location=location, digest="d", bytes=size, committed=NOW)


def snapshot(*entries: Entry) -> Snapshot:
    catalog = Catalog(sequence=max((each.seq for each in entries), default=0), checkpoints=entries)
    return Snapshot(catalog, "token")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_commits_are_counted_from_the_second_look_on(metrics: Metrics) -> None:
    memory = Memories().of(("ns", "job"), "uid")
    memory.registers.snapshot = snapshot(entry(1), entry(2))
    metrics.looked(memory)
    assert value(metrics, "everstep_commits_total") == 0, "a restarted operator has not seen these being committed"
    memory.registers.snapshot = snapshot(entry(2), entry(3, 7), entry(4, 8))
    metrics.looked(memory)
    metrics.looked(memory)
    assert value(metrics, "everstep_commits_total") == 2
    assert value(metrics, "everstep_committed_bytes_total") == 15


def test_a_jobs_first_commits_are_counted(metrics: Metrics) -> None:
    memory = Memories().of(("ns", "job"), "uid")
    metrics.looked(memory)
    memory.registers.snapshot = snapshot(entry(1))
    metrics.looked(memory)
    assert value(metrics, "everstep_commits_total") == 1


def test_a_register_that_was_gone_is_not_counted_again(metrics: Metrics) -> None:
    memory = Memories().of(("ns", "job"), "uid")
    for seen in (snapshot(entry(1), entry(2)), None, snapshot(entry(1), entry(2)), snapshot(entry(2), entry(3))):
        memory.registers.snapshot = seen
        metrics.looked(memory)
    assert value(metrics, "everstep_commits_total") == 1


def restarted(total: int, reason: str) -> TrainingJobStatus:
    return TrainingJobStatus(restarts=Restarts(total=total), history=[HistoryEntry(attempt=total, reason=reason)])


def test_restarts_are_counted_by_reasons_that_no_tenant_makes_up(metrics: Metrics) -> None:
    before = TrainingJobStatus()
    for number, reason in enumerate(["OOMKilled", *(f"MyError{n}" for n in range(500))], 1):
        after = restarted(number, reason)
        metrics.wrote(before, after)
        metrics.wrote(after, after)
        before = after
    assert value(metrics, "everstep_restarts_total", reason="OOMKilled") == 1
    assert value(metrics, "everstep_restarts_total", reason="Error") == 500
    assert generate_latest(metrics.registry).decode().count("everstep_restarts_total{") == 2


def test_a_recovery_is_counted_once_when_it_is_over(metrics: Metrics) -> None:
    begun = TrainingJobStatus(recovery=Recovery(detected=NOW, attempt=1, seconds=RecoverySeconds(detect=0.5)))
    seconds = RecoverySeconds(detect=0.5, teardown=1, schedule=0, start=2, load=3, total=6.5)
    over = TrainingJobStatus(recovery=Recovery(detected=NOW, attempt=1, lost_steps=9, seconds=seconds))
    for before, after in ((TrainingJobStatus(), begun), (begun, over), (over, over)):
        metrics.wrote(before, after)
    for phase, sum_of in (("detect", 0.5), ("load", 3), ("total", 6.5)):
        assert value(metrics, "everstep_recovery_seconds_count", phase=phase) == 1
        assert value(metrics, "everstep_recovery_seconds_sum", phase=phase) == sum_of
    assert value(metrics, "everstep_lost_steps_total") == 9
    unseen = Recovery(detected=NOW, attempt=1, lost_steps=4, seconds=RecoverySeconds(load=2))
    metrics.wrote(over, over.model_copy(update={"recovery": unseen}))
    assert value(metrics, "everstep_lost_steps_total") == 13, "though no log told when a worker died"


def test_a_jobs_series_tell_its_status_and_vanish_with_it(metrics: Metrics) -> None:
    memories = Memories()
    metrics.registry.register(JobSeries(memories))
    memory = memories.of(("ns", "job"), "uid-1")
    memory.status = TrainingJobStatus.model_validate(status())
    memory.registers.snapshot = snapshot(entry(3, 70), entry(4, 80))
    of = {"namespace": "ns", "job": "job"}
    assert value(metrics, "everstep_job_info", **of, uid="uid-1") == 1
    assert value(metrics, "everstep_job_phase", **of, phase=memory.status.phase or "") == 1
    assert value(metrics, "everstep_job_attempt", **of) == memory.status.attempt
    assert value(metrics, "everstep_job_step", **of) == 1234
    assert value(metrics, "everstep_job_last_committed_step", **of) == 40
    assert value(metrics, "everstep_job_last_commit_timestamp_seconds", **of) == NOW.timestamp()
    assert value(metrics, "everstep_job_commits_total", **of) == 4
    assert value(metrics, "everstep_job_checkpoint_bytes", **of) == 150
    assert value(metrics, "everstep_job_goodput_ratio", **of) == 0.97
    assert value(metrics, "everstep_job_condition", **of, condition="Running") == 1
    memory.registers.heartbeat = beat(90, saves_failed=5, saves_failed_in_a_row=2).heartbeat
    assert value(metrics, "everstep_job_saves_failed_total", **of) == 5
    assert value(metrics, "everstep_job_saves_failed_in_a_row", **of) == 2
    memory.status = memory.status.model_copy(update={"phase": Phase.FAILED})
    phases = [line for line in generate_latest(metrics.registry).decode().splitlines() if "job_phase{" in line]
    assert phases == ['everstep_job_phase{job="job",namespace="ns",phase="Failed"} 1.0'], "one phase at a time"
    memories.forget(("ns", "job"))
    assert 'job="job"' not in generate_latest(metrics.registry).decode()


def test_a_status_that_somebody_edited_breaks_no_scrape(metrics: Metrics) -> None:
    memories = Memories()
    metrics.registry.register(JobSeries(memories))
    when = "2026-01-01T00:00:00Z"
    conditions = [{"type": "Mine", "status": "True", "lastTransitionTime": when}]
    content = {"goodput": "a lot", "conditions": conditions, "attempt": 3}
    memories.of(("ns", "job"), "uid").status = TrainingJobStatus.model_validate(content)
    text = generate_latest(metrics.registry).decode()
    assert value(metrics, "everstep_job_attempt", namespace="ns", job="job") == 3
    assert "Mine" not in text
    assert "everstep_job_goodput_ratio{" not in text


def test_series_of_one_job_are_few(metrics: Metrics) -> None:
    memories = Memories()
    metrics.registry.register(JobSeries(memories))
    before = generate_latest(metrics.registry).decode().splitlines()
    for number in range(10):
        memory = memories.of(("ns", f"job-{number}"), f"uid-{number}")
        memory.status = TrainingJobStatus.model_validate(status())
        memory.registers.snapshot = snapshot(entry(1))
    after = generate_latest(metrics.registry).decode().splitlines()
    assert len(after) - len(before) <= 10 * 30


def test_every_request_to_a_store_is_told_with_its_result(metrics: Metrics, tmp_path: Path) -> None:
    store = MeasuredStore(open_store(str(tmp_path)), metrics.asked_storage)
    token = store.swap_register("catalog.json", b"{}", None)
    with pytest.raises(SwapRefused):
        store.swap_register("catalog.json", b"{}", None)
    store.swap_register("catalog.json", b"{1}", token)
    store.read_register("catalog.json")
    assert next(iter(store.list("catalog.d/"))).key.startswith("catalog.d/"), "a listing that is not read to its end"
    for kind, result, count in (
        ("swap_register", "ok", 2),
        ("swap_register", "refused", 1),
        ("read_register", "ok", 1),
        ("list", "ok", 1),
    ):
        assert value(metrics, "everstep_storage_request_seconds_count", kind=kind, result=result) == count


@pytest.mark.parametrize(
    ("method", "path", "verb", "resource"),
    [
        ("GET", "/api/v1/namespaces/kube-system", "get", "namespaces"),
        ("GET", "/api/v1/namespaces/ns/pods", "list", "pods"),
        ("GET", "/api/v1/namespaces/ns/pods/a", "get", "pods"),
        ("GET", "/api/v1/namespaces/ns/pods/a/log", "get", "pods/log"),
        ("POST", "/api/v1/namespaces/ns/pods", "create", "pods"),
        ("GET", "/api/v1/nodes/a", "get", "nodes"),
        ("GET", "/apis/everstep.dev/v1alpha1/trainingjobs", "list", "trainingjobs"),
        ("PATCH", "/apis/everstep.dev/v1alpha1/namespaces/ns/trainingjobs/a/status", "patch", "trainingjobs/status"),
        ("PUT", "/apis/coordination.k8s.io/v1/namespaces/ns/leases/a", "update", "leases"),
        ("DELETE", "/api/v1/namespaces/ns/pods/a", "delete", "pods"),
    ],
)
def test_requests_are_named_as_rbac_names_them(method: str, path: str, verb: str, resource: str) -> None:
    assert asked(method, path) == (verb, resource)
