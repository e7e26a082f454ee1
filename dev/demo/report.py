"""What the demo has shown: the recoveries in figures, and both runs' losses bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table

from dev.demo.jobs import JobView
from dev.demo.target import Target
from everstep.catalog import JobCatalog, S3Access, open_store


@dataclass(frozen=True)
class Recovery:
    fault: str
    killed_at: int
    committed: int
    resumed_from: int
    lost: int
    seconds: dict[str, Any]


def catalog_of(target: Target, name: str) -> JobCatalog:
    access = S3Access(target.s3.url, target.s3.region, target.s3.access_key, target.s3.secret_key)
    return JobCatalog(open_store(f"s3://{target.bucket}/jobs/{target.kubectl.namespace}/{name}", access))


def latest_step(job: JobCatalog) -> int:
    """The latest committed step, 0 before the first."""
    latest = job.require().latest()
    return 0 if latest is None else latest.step


def losses(job: JobCatalog) -> dict[int, float]:
    """Step to training loss, from the manifests of what is still committed."""
    return {
        entry.step: loss
        for entry in job.require().live()
        if (loss := job.manifest(entry).metrics.get("loss")) is not None
    }


def recoveries_table(recoveries: list[Recovery]) -> Table:
    table = Table(title="What was lost", title_justify="left")
    for column in ("fault", "killed at step", "latest committed", "resumed from", "steps lost", "seconds by phase"):
        table.add_column(column)
    for recovery in recoveries:
        phases = ", ".join(f"{name} {value}" for name, value in recovery.seconds.items())
        numbers = (recovery.killed_at, recovery.committed, recovery.resumed_from, recovery.lost)
        table.add_row(recovery.fault, *map(str, numbers), phases)
    return table


def losses_table(reference: dict[int, float], interrupted: dict[int, float]) -> tuple[Table, bool]:
    """Both runs at every step that both still keep, and whether they are equal to the last bit."""
    table = Table(title="Loss, uninterrupted and interrupted", title_justify="left")
    for column in ("step", "uninterrupted", "interrupted", "to the last bit"):
        table.add_column(column)
    common = sorted(reference.keys() & interrupted.keys())
    equal = bool(common)
    for step in common:
        same = reference[step].hex() == interrupted[step].hex()
        equal = equal and same
        one, other = (f"{loss:.6f} {loss.hex()}" for loss in (reference[step], interrupted[step]))
        table.add_row(str(step), one, other, "equal" if same else "[red]DIFFERENT[/red]")
    return table, equal


def recovery_of(view: JobView, fault: str, killed_at: int, committed: int) -> Recovery:
    resumed = int((view.status.get("resumedFrom") or {}).get("step") or 0)
    found = view.status.get("recovery") or {}
    # The pods tell of steps after the demo's last look; and a save in flight may still land after it.
    lost = max(0, int(found.get("lostSteps") or 0), killed_at - resumed)
    return Recovery(fault, killed_at, committed, resumed, lost, dict(found.get("seconds") or {}))
