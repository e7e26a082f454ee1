"""Runs and their checkpoints as tables for people."""

from __future__ import annotations

from rich.table import Table

from everstep.cli import format as written
from everstep.cli.runs import Row, Run


def run_table(run: Run) -> Table:
    table = Table(title=run.uri, title_justify="left", title_style="bold")
    for name, justify in (("Step", "right"), ("Size", "right"), ("Files", "right"), ("Status", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name in ("Created", "Score", "Kept because"):
        table.add_column(name)
    for row in run.rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    return [
        str(row.step),
        "" if row.bytes is None else written.size(row.bytes),
        "" if row.files is None else str(row.files),
        row.status,
        "" if row.created is None else written.time(row.created),
        "" if row.score is None else f"{row.score:.6g}",
        ", ".join(row.kept_because),
    ]


def run_summary(run: Run) -> str:
    latest = run.catalog.latest()
    newest = "none committed" if latest is None else f"step {latest.step} ({latest.location})"
    return f"Run total: {len(run.rows)} checkpoint(s), {written.size(run.total)}. Latest: {newest}\n"
