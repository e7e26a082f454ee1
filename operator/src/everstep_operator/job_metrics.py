"""The series of each job, made at the scrape from what this process remembers: those of a deleted job are gone with it.

About 25 series a job, from the holder of the Lease alone. Labels are namespace and name; free text of a tenant is
no label, and whatever a status holds, the scrape succeeds.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from everstep_operator.api import ConditionType, TrainingJobStatus
from everstep_operator.memory import JobMemory, Key, Memories

LABELS = ("namespace", "job")
_CONDITIONS = frozenset(ConditionType)


class JobSeries(Collector):
    def __init__(self, memories: Memories) -> None:
        self._memories = memories

    def describe(self) -> list[Metric]:
        """Nothing is collected when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        families = _Families()
        for key, memory in self._memories.items():
            if memory.status is not None:
                families.add(key, memory, memory.status)
        return iter(families.all())


class _Families:
    def __init__(self) -> None:
        self.info = _gauge("info", "Always 1.", "uid")
        self.phase = _gauge("phase", "1 for the phase that the job is in.", "phase")
        self.condition = _gauge("condition", "Whether the job's condition is True (1) or False (0).", "condition")
        self.attempt = _gauge("attempt", "Number of the current attempt.")
        self.nodes = _gauge("nodes", "Pods of the current attempt that exist.")
        self.restarts = CounterMetricFamily(
            "everstep_job_restarts",
            "Restarts of the job, by kind (counted, uncounted: new attempts; in_place: of the workers).",
            labels=[*LABELS, "kind"],
        )
        self.step = _gauge("step", "The last finished optimizer step.")
        self.total_steps = _gauge("total_steps", "The step at which the training ends.")
        self.committed_step = _gauge("last_committed_step", "The step of the latest committed checkpoint.")
        self.committed = _gauge(
            "last_commit_timestamp_seconds", "When the latest checkpoint was committed, in Unix time."
        )
        self.local_step = _gauge("last_local_step", "The newest step that the local tier has.")
        self.local_failures = CounterMetricFamily(
            "everstep_job_local_saves_failed", "Saves that the local tier did not take.", labels=LABELS
        )
        self.failures = CounterMetricFamily(
            "everstep_job_saves_failed", "Saves of the current workers that failed.", labels=LABELS
        )
        self.failing = _gauge("saves_failed_in_a_row", "Saves that failed since the last one that was committed.")
        self.commits = CounterMetricFamily(
            "everstep_job_commits", "Checkpoints that the job has ever committed.", labels=LABELS
        )
        self.checkpoints = _gauge("checkpoints", "Committed checkpoints that are kept.")
        self.bytes = _gauge("checkpoint_bytes", "What they occupy.")
        self.goodput = _gauge("goodput_ratio", "Share of the active time that went into steps which were kept.")

    def all(self) -> list[Metric]:
        return list(vars(self).values())

    def add(self, key: Key, memory: JobMemory, status: TrainingJobStatus) -> None:
        labels = list(key)
        self.info.add_metric([*labels, memory.uid], 1)
        if status.phase is not None:
            self.phase.add_metric([*labels, status.phase.value], 1)
        for condition in status.conditions:
            if condition.status != "Unknown" and condition.type in _CONDITIONS:
                self.condition.add_metric([*labels, condition.type], float(condition.status == "True"))
        self.attempt.add_metric(labels, status.attempt)
        self.nodes.add_metric(labels, status.nodes)
        restarts = status.restarts
        if restarts is not None:
            self.restarts.add_metric([*labels, "counted"], restarts.counted)
            self.restarts.add_metric([*labels, "uncounted"], max(0, restarts.total - restarts.counted))
            self.restarts.add_metric([*labels, "in_place"], restarts.in_place)
        self._progress(labels, memory, status)
        self._storage(labels, memory, status)
        share = (status.goodput or "").removesuffix("%")
        if share.isdecimal():
            self.goodput.add_metric(labels, int(share) / 100)

    def _progress(self, labels: list[str], memory: JobMemory, status: TrainingJobStatus) -> None:
        beat = memory.registers.heartbeat
        told = status.progress
        step = beat.step if beat is not None else told.step if told is not None else None
        total = beat.total_steps if beat is not None else told.total_steps if told is not None else None
        if step is not None:
            self.step.add_metric(labels, step)
        if total is not None:
            self.total_steps.add_metric(labels, total)
        if beat is not None and beat.local_step is not None:
            self.local_step.add_metric(labels, beat.local_step)
        if beat is not None:
            self.failures.add_metric(labels, beat.saves_failed)
            self.failing.add_metric(labels, beat.saves_failed_in_a_row)
        if beat is not None and (beat.local_step is not None or beat.local_saves_failed):
            self.local_failures.add_metric(labels, beat.local_saves_failed)

    def _storage(self, labels: list[str], memory: JobMemory, status: TrainingJobStatus) -> None:
        snapshot = memory.registers.snapshot
        if snapshot is not None:
            catalog = snapshot.catalog
            self.commits.add_metric(labels, catalog.sequence)
            self.checkpoints.add_metric(labels, len(catalog.checkpoints))
            self.bytes.add_metric(labels, sum(entry.bytes for entry in catalog.checkpoints))
            last = catalog.latest()
            if last is not None:
                self.committed_step.add_metric(labels, last.step)
                self.committed.add_metric(labels, last.committed.timestamp())
        elif status.last_checkpoint is not None:  # storage cannot be read at the moment
            self.committed_step.add_metric(labels, status.last_checkpoint.step)
            if status.last_checkpoint.committed is not None:
                self.committed.add_metric(labels, status.last_checkpoint.committed.timestamp())


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"everstep_job_{name}", text, labels=[*LABELS, *labels])
