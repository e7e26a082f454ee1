"""What the operator counts, in the format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """All metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.passes = Histogram(
            "everstep_reconcile_seconds",
            "Duration of a pass over one job, by its end (ok or error).",
            ["result"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self.queue = Gauge("everstep_queue_depth", "Jobs that wait for a worker.", registry=self.registry)
        self.jobs = Gauge("everstep_jobs", "Jobs that the operator knows.", registry=self.registry)
        self.leader = Gauge("everstep_leader", "1 while this process holds the Lease.", registry=self.registry)
        self.fences = Counter("everstep_fences_total", "Attempts begun.", registry=self.registry)
        self.restarts = Counter(
            "everstep_restarts_total",
            "Attempts that ended in a restart, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.requests = Counter(
            "everstep_kubernetes_requests_total",
            "Requests to the API server, by verb and status (0: no answer).",
            ["verb", "status"],
            registry=self.registry,
        )
        self.storage = Counter(
            "everstep_storage_calls_total",
            "Calls to object storage, by kind and result (ok, or the reason of the failure).",
            ["call", "result"],
            registry=self.registry,
        )
        self.removed = Counter(
            "everstep_checkpoints_removed_total", "Checkpoints removed by retention.", registry=self.registry
        )
