"""What the operator counts, in the format of Prometheus; `job_metrics` adds a few series a job.

Labels are words of this program, never a tenant's: the number of series here does not depend on what jobs do.
"""

from __future__ import annotations

import platform
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from everstep_operator.api import TrainingJobStatus
from everstep_operator.api.status import Recovery
from everstep_operator.memory import JobMemory
from everstep_operator.reconcile import disruption, stall

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
RECOVERY_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 900)

REASONS = disruption.REASONS | {
    *("OOMKilled", "Evicted", "Fenced", "ContainerStatusUnknown", stall.REASON),
    *("SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGINT"),
    *("PreemptionByScheduler", "DeletionByTaintManager", "EvictionByEvictionAPI", "DeletionByPodGC"),
    *("TerminationByKubelet", "DisruptionTarget"),
}
"""Reasons of restarts that have a series of their own; all others, such as the names of exceptions, are `Error`."""


class Metrics:
    """All metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        build = Gauge("everstep_build_info", "Always 1.", ["version", "python"], registry=self.registry)
        build.labels(version("everstep"), platform.python_version()).set(1)
        self.leader = Gauge("everstep_leader", "1 while this process holds the Lease.", registry=self.registry)
        self.jobs = Gauge("everstep_jobs", "Jobs that this process acts for.", registry=self.registry)

        self.passes = Histogram(
            "everstep_reconcile_seconds",
            "Duration of a pass over one job, by its end (ok or error).",
            ["result"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self.queue = Gauge("everstep_queue_depth", "Jobs that are due and wait for a worker.", registry=self.registry)
        self.keys = Gauge(
            "everstep_queue_keys", "Jobs that the queue knows of, a standby's too.", registry=self.registry
        )
        self.waited = Histogram(
            "everstep_queue_seconds",
            "How long a job that was due waited for a worker.",
            registry=self.registry,
            buckets=SECONDS,
        )
        self.requests = Counter(
            "everstep_kubernetes_requests_total",
            "Requests to the API server, but for watches, by verb, resource and status (0: no answer).",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self.storage = Histogram(
            "everstep_storage_request_seconds",
            "Requests to object storage by kind and result (ok; missing, refused: ordinary answers; unanswered, "
            "unavailable, denied, error: failures).",
            ["kind", "result"],
            registry=self.registry,
            buckets=SECONDS,
        )

        self.fences = Counter("everstep_fences_total", "Attempts begun.", registry=self.registry)
        self.restarts = Counter(
            "everstep_restarts_total",
            "Attempts that ended in a restart, by reason (Error: one of the script's own).",
            ["reason"],
            registry=self.registry,
        )
        self.recovery = Histogram(
            "everstep_recovery_seconds",
            "Recoveries from a fault to the first new step, by phase (detect, restart, teardown, schedule, start, "
            "load, total).",
            ["phase"],
            registry=self.registry,
            buckets=RECOVERY_SECONDS,
        )
        self.lost_steps = Counter(
            "everstep_lost_steps_total", "Steps that were done and had to be done again.", registry=self.registry
        )
        self.commits = Counter("everstep_commits_total", "Checkpoints committed by jobs.", registry=self.registry)
        self.committed_bytes = Counter(
            "everstep_committed_bytes_total", "Bytes of the checkpoints committed by jobs.", registry=self.registry
        )
        self.removed = Counter(
            "everstep_checkpoints_removed_total", "Checkpoints removed by retention.", registry=self.registry
        )

    def asked_storage(self, kind: str, result: str, seconds: float) -> None:
        """Told by every store of every request, in the thread that made it."""
        self.storage.labels(kind, result).observe(seconds)

    def asked_kubernetes(self, verb: str, resource: str, code: int) -> None:
        self.requests.labels(verb, resource, str(code)).inc()

    def looked(self, memory: JobMemory) -> None:
        """Count what was committed since the last look at a job's register that gave an answer; the first of them only
        sets the mark, and a register that is gone for a while moves none.
        """
        snapshot = memory.registers.snapshot
        sequence = snapshot.catalog.sequence if snapshot else 0
        before, memory.counted = memory.counted, max(memory.counted or 0, sequence)
        if before is None or snapshot is None or sequence <= before:
            return
        self.commits.inc(sequence - before)
        self.committed_bytes.inc(sum(each.bytes for each in snapshot.catalog.checkpoints if each.seq > before))

    def wrote(self, before: TrainingJobStatus, after: TrainingJobStatus) -> None:
        """Count what a status write tells for the first time."""
        if after.restarts and after.restarts.total > (before.restarts.total if before.restarts else 0):
            reason = (after.history[-1].reason if after.history else None) or "Error"
            self.restarts.labels(reason if reason in REASONS else "Error").inc()
        found = after.recovery
        if found is None or not found.is_over or before.recovery == found:
            return
        for phase, seconds in _phases(found).items():
            self.recovery.labels(phase).observe(seconds)
        self.lost_steps.inc(found.lost_steps or 0)


def _phases(recovery: Recovery | None) -> dict[str, float]:
    """Seconds by phase, as far as they were measured."""
    return recovery.seconds.model_dump(exclude_none=True) if recovery and recovery.seconds else {}
