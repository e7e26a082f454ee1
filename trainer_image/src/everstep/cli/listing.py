"""`ls` and `show`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from everstep.catalog import Entry, JobCatalog, Manifest, S3Access
from everstep.catalog.manifest import flat
from everstep.cli import common
from everstep.cli import format as written
from everstep.cli.output import Output, emit
from everstep.cli.runs import Row, Run, find_runs
from everstep.cli.tables import facts, table, width

HEADERS = (">Step", ">Size", ">Files", "Status", "Created", ">Score", "Kept because")


def list_runs(
    uri: common.Place,
    partial: Annotated[bool, typer.Option("--partial", help="list the runs too: saves that are not committed")] = False,
    endpoint: common.Endpoint = None,
    region: common.Region = None,
    output: common.Form = Output.table,
) -> None:
    """Show every run under a place with its checkpoints: status complete, partial, quarantined, abandoned or removing.

    Reads one register a run and lists no checkpoint, unless --partial asks for it.
    """
    runs = find_runs(uri, S3Access(endpoint=endpoint, region=region), partial)
    count, total = sum(len(run.rows) for run in runs), sum(run.total for run in runs)
    data = {"runs": [run.as_dict() for run in runs], "checkpoints": count, "bytes": total}
    emit(output, data, _lines(runs, count, total))
    if any(run.problem for run in runs):
        raise typer.Exit(common.DAMAGED)


def _lines(runs: list[Run], count: int, total: int) -> Iterator[str]:
    room = width()
    for run in runs:
        yield from run_lines(run, room)
        yield ""
    summary = (written.count(len(runs), "run"), written.count(count, "checkpoint"), written.size(total))
    yield f"Grand total: {', '.join(summary)}"


def run_lines(run: Run, room: int | None) -> Iterator[str]:
    """One run as text that is at most `room` characters wide."""
    yield run.uri
    if run.problem is not None:
        yield f"  {run.problem}"
        return
    yield from table(HEADERS, (_cells(row) for row in run.rows), room)
    yield _summary(run)


def _cells(row: Row) -> list[str]:
    return [
        str(row.step),
        written.size(row.bytes),
        "" if row.files is None else str(row.files),
        row.status,
        "" if row.created is None else written.time(row.created, seconds=False),
        "" if row.score is None else f"{row.score:.5g}",
        ", ".join(row.kept_because),
    ]


def _summary(run: Run) -> str:
    latest = run.catalog.latest()
    newest = "none" if latest is None else f"step {latest.step}"
    return f"Total: {written.count(len(run.rows), 'checkpoint')}, {written.size(run.total)}. Latest: {newest}"


def show(
    uri: common.Place,
    step: common.Step = None,
    endpoint: common.Endpoint = None,
    region: common.Region = None,
    output: common.Form = Output.table,
) -> None:
    """Show one checkpoint: what its manifest says, and its files."""
    target = common.open_target(uri, endpoint, region)
    entry = target.pick(target.catalog(), step)
    manifest = target.job.manifest(entry)
    emit(output, _as_dict(entry, manifest), _details(target.job, entry, manifest))


def _as_dict(entry: Entry, manifest: Manifest) -> dict[str, Any]:
    return {
        **entry.model_dump(mode="json"),
        "manifest": manifest.model_dump(mode="json", exclude={"files"}),
        "files": [{"name": file.name, "size": file.size, "rank": file.rank} for file in manifest.files],
    }


def _config(manifest: Manifest) -> str | None:
    """Its digest where it is no dict, or was too large to be kept."""
    if not isinstance(manifest.config, dict):
        return manifest.config_digest
    return ", ".join(f"{name} {value}" for name, value in flat(manifest.config).items() if value is not None)


def _details(job: JobCatalog, entry: Entry, manifest: Manifest) -> Iterator[str]:
    room = width()
    progress = manifest.progress
    yield f"{job.store.uri}/{entry.location}"
    yield from facts(
        (
            ("Step", entry.step),
            ("State", entry.state + (f": {entry.reason}" if entry.reason else "")),
            ("Pinned", "yes" if entry.pinned else None),
            ("Size", f"{written.size(entry.bytes)} in {written.count(entry.files, 'file')}"),
            ("Committed", written.time(entry.committed)),
            ("Attempt", f"{entry.attempt}, epoch {entry.epoch}"),
            ("World size", manifest.world_size),
            ("Mesh", ", ".join(f"{name} {size}" for name, size in manifest.mesh.items())),
            ("Progress", f"{progress.samples} samples, {progress.tokens} tokens, epoch {progress.epoch}"),
            ("Score", entry.score),
            ("Metrics", ", ".join(f"{key} {value:.6g}" for key, value in manifest.metrics.items())),
            ("Custom", ", ".join(f"{key} {value}" for key, value in manifest.custom.items())),
            ("Versions", ", ".join(f"{key} {value}" for key, value in manifest.versions.items())),
            ("Config", _config(manifest)),
            ("Manifest", entry.digest),
        ),
        room,
    )
    yield ""
    cells = ([written.size(f.size), "" if f.rank is None else str(f.rank), f.name] for f in manifest.files)
    yield from table((">Size", ">Rank", "File"), cells, room)
