"""Observations for tests of decisions: each builder takes only what the test is about."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from everstep.catalog import Catalog, Entry, Heartbeat, Location, Owner
from everstep.catalog import transitions as t
from everstep_operator.api import TrainingJob
from everstep_operator.build import Launch, pod_name
from everstep_operator.reconcile.observation import (
    ConditionView,
    ContainerView,
    HeartbeatView,
    NodeView,
    Observation,
    PodView,
    ServiceView,
    Stored,
)
from tests.support.trainingjobs import edited, minimal

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
UID, CLUSTER = "uid-1", "cluster-1"
OWNER = Owner(cluster=CLUSTER, namespace="default", name="job", uid=UID)


def at(seconds: float) -> datetime:
    """A moment, by its distance from NOW."""
    return NOW + timedelta(seconds=seconds)


def job(status: dict[str, Any] | None = None, metadata: dict[str, Any] | None = None, **spec: Any) -> TrainingJob:
    """`spec`: dotted paths with two underscores for the dot, e.g. failurePolicy__maxRestarts=1."""
    manifest = minimal()
    manifest["spec"]["nodes"] = 2
    for path, value in spec.items():
        manifest = edited(manifest, "spec." + path.replace("__", "."), value)
    manifest["metadata"] |= {"uid": UID, "generation": 1, **(metadata or {})}
    return TrainingJob.parse({**manifest, "status": status or {}})


def running(status: dict[str, Any] | None = None, attempt: int = 1) -> dict[str, Any]:
    """The status of a job whose gang of two runs."""
    return {
        "phase": "Running",
        "attempt": attempt,
        "nodes": 2,
        "activeSince": "2026-01-01T11:00:00Z",
        "startTime": "2026-01-01T11:00:00Z",
        "fence": {"attempt": attempt, "epoch": 2 * attempt - 1, "generation": attempt, "claimed": 2 * attempt},
        "gang": {
            "summary": "2 of 2 running",
            "nodes": 2,
            "started": "2026-01-01T11:00:00Z",
            "running": "2026-01-01T11:00:02Z",
        },
        **(status or {}),
    }


def ended(attempt: int = 1, reason: str = "SIGKILL", **status: Any) -> dict[str, Any]:
    """The status of a job whose attempt has ended."""
    entry = {"attempt": attempt, "reason": reason, "message": f"ended by {reason}"}
    return {
        "phase": "Restarting",
        "attempt": attempt,
        "activeSince": "2026-01-01T11:00:00Z",
        "history": [entry],
        **status,
    }


def pod(index: int = 0, attempt: int = 1, **changes: Any) -> PodView:
    """A running pod on node-a (index 0) or node-b (others)."""
    launch = Launch(attempt, nodes=2, epoch=2 * attempt - 1, generation=attempt)
    base = PodView(
        name=pod_name("job", attempt, index),
        uid=f"pod-{attempt}-{index}",
        attempt=attempt,
        index=index,
        phase="Running",
        node="node-a" if index == 0 else "node-b",
        created=at(-3600),
        container=ContainerView(running_since=at(-3598)),
        annotations=launch.annotations(),
        conditions=(ConditionView("PodScheduled", "True", since=at(-3600)),),
    )
    return replace(base, **changes)


def failed(index: int = 0, attempt: int = 1, code: int = 1, **container: Any) -> PodView:
    view = ContainerView(exit_code=code, finished=at(-1), **container)
    return pod(index, attempt, phase="Failed", container=view)


def crashed(index: int = 0, attempt: int = 1) -> PodView:
    """A failed pod whose record tells all."""
    return failed(index, attempt, message=record(rank=index, exit_code=1, exception="RuntimeError", message="crash"))


def succeeded(index: int = 0, attempt: int = 1) -> PodView:
    view = ContainerView(exit_code=0, reason="Completed", finished=at(-1))
    return pod(index, attempt, phase="Succeeded", container=view)


def record(**content: Any) -> str:
    """A termination message as the library writes it."""
    return json.dumps({"time": at(-1).isoformat(), **content})


def fenced(attempt: int = 1, before: Catalog | None = None) -> Catalog:
    catalog = t.fence(before or Catalog(), OWNER, f"fence-{attempt}", attempt)
    return catalog.model_copy(update={"generation": catalog.generation + 1})


def claimed(attempt: int = 1, before: Catalog | None = None, claim: str = "claim") -> Catalog:
    return t.claim(before or fenced(attempt), claim, at(-3590), attempt, UID)


def committed(*steps: int, before: Catalog | None = None, score: float | None = None) -> Catalog:
    """Commits by the claim in force."""
    catalog = before or claimed()
    for step in steps:
        assert catalog.claim is not None
        entry = Entry(
            seq=0,
            step=step,
            epoch=catalog.claim.epoch,
            attempt=catalog.attempt,
            location=str(Location(step, catalog.claim.epoch, f"{step:012x}")),
            digest="d" * 64,
            bytes=1_300_000_000,
            committed=at(-60),
            score=score,
        )
        catalog = t.commit(catalog, catalog.claim.id, entry)
    return catalog


def beat(
    step: int = 0,
    attempt: int = 1,
    beat_age: float = 0.0,
    still: float = 0.0,
    in_phase: float = 0.0,
    **content: Any,
) -> HeartbeatView:
    base: dict[str, Any] = {
        "attempt": attempt,
        "epoch": 2 * attempt,
        "beat": 7,
        "time": NOW,
        "phase": "training",
        "phase_since": at(-60),
        "first_step": at(-50),
        "step": step,
    }
    still = max(beat_age, still)
    return HeartbeatView(Heartbeat.model_validate({**base, **content}), beat_age, still, max(still, in_phase))


def service(attempt: int = 1) -> ServiceView:
    return ServiceView("job-rendezvous", "service-1", "10.0.0.7", attempt)


def observe(
    of: TrainingJob | None = None,
    *pods: PodView,
    catalog: Catalog | None = None,
    heartbeat: HeartbeatView | None = None,
    swept: float | None = 1.0,
    **changes: Any,
) -> Observation:
    base = Observation(
        job=of or job(),
        now=NOW,
        cluster=CLUSTER,
        pods=pods,
        services=(service(catalog.attempt),) if catalog else (),
        nodes=(NodeView("node-a"), NodeView("node-b")),
        stored=Stored(catalog=catalog, heartbeat=heartbeat, swept_age=swept),
    )
    return replace(base, **changes)
