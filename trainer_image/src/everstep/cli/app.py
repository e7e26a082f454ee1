"""The commands. Exit codes: 0 done; 1 a clear refusal; 2 a wrong call; 3 something is corrupt."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from everstep.catalog import JobCatalog, Retention, S3Access, open_store
from everstep.catalog.documents import Catalog, Entry
from everstep.catalog.keys import split_root
from everstep.catalog.rebuild import rebuild as rebuild_register
from everstep.catalog.rebuild import survey
from everstep.catalog.retention import expendable, safeguarded
from everstep.catalog.verify import verify_save
from everstep.cli import format as written
from everstep.cli.output import Output, complain, console, emit, errors
from everstep.cli.runs import find_runs
from everstep.cli.tables import run_summary, run_table
from everstep.errors import CheckpointCorruptError, CheckpointError, CheckpointNotFoundError, InvalidOperationError

app = typer.Typer(
    name="everstep",
    help="Look at everstep's checkpoints in S3 or a directory. Credentials: the usual AWS variables and files.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Uri = Annotated[str, typer.Argument(help="s3://bucket/prefix…, file:///path or a path; a run, or a folder of runs")]
Endpoint = Annotated[str | None, typer.Option(envvar="AWS_ENDPOINT_URL", help="the S3 server, where it is not AWS")]
Region = Annotated[str | None, typer.Option(envvar="AWS_REGION", help="the S3 region")]
Form = Annotated[Output, typer.Option("--output", "-o", help="how to print")]
Step = Annotated[int | None, typer.Option(help="the step; without it the latest committed one")]


@app.command("ls")
def list_runs(
    uri: Uri,
    endpoint: Endpoint = None,
    region: Region = None,
    uncommitted: Annotated[bool, typer.Option("--partial", help="also list saves that are not committed")] = False,
    output: Form = Output.table,
) -> None:
    """Show every run under a place with its checkpoints."""
    runs = find_runs(uri, S3Access(endpoint=endpoint, region=region), uncommitted)
    total = sum(run.total for run in runs)
    count = sum(len(run.rows) for run in runs)
    data = {"runs": [run.as_dict() for run in runs], "checkpoints": count, "bytes": total}
    emit(
        output,
        data,
        *[table for run in runs for table in (run_table(run), run_summary(run))],
        f"Grand total: {len(runs)} run(s), {count} checkpoint(s), {written.size(total)}",
    )


def _open(uri: str, endpoint: str | None, region: str | None) -> tuple[JobCatalog, str | None]:
    try:
        root, location = split_root(uri)
    except ValueError as error:
        raise InvalidOperationError(str(error)) from error
    return JobCatalog(open_store(root, S3Access(endpoint=endpoint, region=region))), str(location) if location else None


def _pick(catalog: Catalog, step: int | None, location: str | None) -> Entry:
    if location is not None:
        found = catalog.find(location)
    elif step is not None:
        found = max((e for e in catalog.checkpoints if e.step == step), key=lambda e: e.seq, default=None)
    else:
        found = catalog.latest()
    if found is None:
        steps = ", ".join(str(entry.step) for entry in catalog.live()) or "none"
        what = location or ("any step" if step is None else f"step {step}")
        raise CheckpointNotFoundError(f"{what} is not committed here; committed steps: {steps}")
    return found


@app.command()
def show(
    uri: Uri, step: Step = None, endpoint: Endpoint = None, region: Region = None, output: Form = Output.table
) -> None:
    """Show one checkpoint: what its manifest says, and its files."""
    job, location = _open(uri, endpoint, region)
    entry = _pick(job.require(), step, location)
    manifest = job.manifest(entry)
    files = [{"name": file.name, "size": file.size, "rank": file.rank} for file in manifest.files]
    data = {
        **entry.model_dump(mode="json"),
        "manifest": manifest.model_dump(mode="json", exclude={"files"}),
        "files": files,
    }
    facts = Table(title=f"{job.store.uri}/{entry.location}", title_justify="left", show_header=False)
    for name, value in (
        ("Step", entry.step),
        ("State", entry.state + (f": {entry.reason}" if entry.reason else "")),
        ("Size", written.size(entry.bytes)),
        ("Committed", written.time(entry.committed)),
        ("Attempt", entry.attempt),
        ("World size", manifest.world_size),
        ("Progress", f"{manifest.progress.samples} samples, {manifest.progress.tokens} tokens"),
        ("Score", "" if entry.score is None else entry.score),
        ("Metrics", ", ".join(f"{key} {value:.6g}" for key, value in manifest.metrics.items())),
        ("Versions", ", ".join(f"{key} {value}" for key, value in manifest.versions.items())),
        ("Digest", entry.digest),
    ):
        facts.add_row(name, str(value))
    listing = Table("File", "Size", "Rank")
    for file in manifest.files:
        listing.add_row(file.name, written.size(file.size), "" if file.rank is None else str(file.rank))
    emit(output, data, facts, listing)


@app.command()
def verify(
    uri: Uri,
    step: Step = None,
    everything: Annotated[bool, typer.Option("--all", help="every committed checkpoint of the run")] = False,
    endpoint: Endpoint = None,
    region: Region = None,
) -> None:
    """Read every byte of a checkpoint and compare it with the sums that were committed."""
    job, location = _open(uri, endpoint, region)
    catalog = job.require()
    entries = catalog.live() if everything else [_pick(catalog, step, location)]
    bad = 0
    for entry in entries:
        try:
            manifest = job.manifest(entry)
            with _progress() as progress:
                task = progress.add_task(f"step {entry.step}", total=manifest.bytes)
                verify_save(job.store, manifest, partial(progress.advance, task))
        except CheckpointCorruptError as error:
            bad += 1
            complain(f"step {entry.step}: {error}")
        else:
            console.print(f"step {entry.step}: {len(manifest.files)} files, {written.size(manifest.bytes)}, all right")
    if bad:
        raise typer.Exit(3)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    return Progress(*columns, console=errors, transient=True)


@app.command()
def pin(
    uri: Uri,
    step: Step = None,
    remove: Annotated[bool, typer.Option("--remove", help="take the pin away")] = False,
    endpoint: Endpoint = None,
    region: Region = None,
) -> None:
    """Keep a checkpoint whatever the retention policy says."""
    job, location = _open(uri, endpoint, region)
    entry = _pick(job.require(), step, location)
    job.pin(entry.location, not remove)
    console.print(f"step {entry.step} ({entry.location}) is {'no longer ' if remove else ''}pinned")


@app.command()
def prune(
    uri: Uri,
    steps: Annotated[list[int] | None, typer.Option("--step", help="this step; may be given more than once")] = None,
    set_aside: Annotated[bool, typer.Option(help="all that are abandoned or quarantined")] = False,
    keep_last: Annotated[int | None, typer.Option(min=1, help="all live ones but so many newest")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    endpoint: Endpoint = None,
    region: Region = None,
) -> None:
    """Remove checkpoints for good. The two newest, and what is pinned, held or being resumed from, always stay."""
    job, location = _open(uri, endpoint, region)
    catalog = job.require()
    chosen = _to_prune(catalog, location, steps or [], set_aside, keep_last)
    if not chosen:
        console.print("nothing to remove")
        return
    for entry in chosen:
        console.print(f"step {entry.step}: {entry.location}, {written.size(entry.bytes)}, {entry.state}")
    if not yes:
        typer.confirm(f"Remove {len(chosen)} checkpoint(s), {written.size(sum(e.bytes for e in chosen))}?", abort=True)
    job.prune({entry.location for entry in chosen})
    while job.finish_removals():
        pass
    console.print(f"removed {len(chosen)} checkpoint(s)")


def _to_prune(
    catalog: Catalog, location: str | None, steps: list[int], set_aside: bool, keep_last: int | None
) -> list[Entry]:
    """What the options name. Raises CheckpointNotFoundError for a step that is not there."""
    if location is None and not steps and not set_aside and keep_last is None:
        raise InvalidOperationError("say what to remove: --step, --set-aside, --keep-last or a checkpoint's own path")
    named = {_pick(catalog, step, None).location for step in steps} | ({location} if location else set())
    if location is not None:
        _pick(catalog, None, location)
    if set_aside:
        safe = safeguarded(catalog, datetime.now(UTC))
        named |= {e.location for e in catalog.checkpoints if e.state != "live" and e.location not in safe}
    if keep_last is not None:
        named |= {e.location for e in expendable(catalog, Retention(last=keep_last), datetime.now(UTC))}
    return [entry for entry in catalog.checkpoints if entry.location in named]


@app.command()
def rebuild(
    uri: Uri,
    yes: Annotated[bool, typer.Option("--yes", help="the job is suspended or gone, and I mean it")] = False,
    endpoint: Endpoint = None,
    region: Region = None,
) -> None:
    """Make a lost catalog.json again from saves that are provably committed. The job must be suspended."""
    job, _ = _open(uri, endpoint, region)
    if job.read() is not None:
        raise InvalidOperationError(f"{job.store.uri} has a catalog.json: nothing to rebuild")
    with _progress() as progress:
        task = progress.add_task("verifying", total=None)
        rebuilt = survey(job, lambda count: progress.advance(task, count))
    for entry in rebuilt.catalog.checkpoints:
        console.print(f"step {entry.step}: {entry.location}, {written.size(entry.bytes)}, {entry.state}")
    for rejected in rebuilt.rejected:
        console.print(f"left out, to be swept: {rejected.location}: {rejected.reason}", markup=False)
    if not yes:
        typer.confirm("Is the job suspended or gone, and is this what its catalog shall hold?", abort=True)
    catalog = rebuild_register(job, rebuilt)
    console.print(f"{job.store.uri}/catalog.json: {len(catalog.checkpoints)} checkpoint(s), epoch {catalog.epoch}")


def main() -> None:
    try:
        app()
    except CheckpointCorruptError as error:
        complain(f"everstep: {error}")
        sys.exit(3)
    except CheckpointError as error:
        complain(f"everstep: {error}")
        sys.exit(1)
