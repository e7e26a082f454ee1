"""`verify`: every byte of a checkpoint against the sums that were committed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any

import typer

from everstep.catalog import Entry, JobCatalog
from everstep.catalog.verify import find_damage
from everstep.cli import common
from everstep.cli import format as written
from everstep.cli.output import Output, emit
from everstep.cli.tables import table, width
from everstep.errors import CheckpointCorruptError, CheckpointNotFoundError


def verify(
    uri: common.Place,
    step: common.Step = None,
    everything: common.Everything = False,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="reads at the same time")] = 8,
    endpoint: common.Endpoint = None,
    region: common.Region = None,
    output: common.Form = Output.table,
) -> None:
    """Read every byte of a checkpoint and compare it with the sums that were committed. Exit code 3: damage."""
    target = common.open_target(uri, endpoint, region)
    target.check_everything(everything, step)
    catalog = target.catalog()
    entries = catalog.live() if everything else [target.pick(catalog, step)]
    with common.progress_bar() as progress:
        results = []
        for entry in entries:
            task = progress.add_task(f"step {entry.step}", total=entry.bytes)
            results.append(_verify(target.job, entry, jobs, partial(progress.advance, task)))
            progress.remove_task(task)
    emit(output, {"uri": target.job.store.uri, "checkpoints": results}, _lines(target.job.store.uri, results))
    if any(result["damage"] for result in results):
        raise typer.Exit(common.DAMAGED)


def _verify(job: JobCatalog, entry: Entry, jobs: int, on_bytes: Callable[[int], None]) -> dict[str, Any]:
    started = time.monotonic()
    files = size = 0
    try:
        manifest = job.manifest(entry)
        files, size = len(manifest.files), manifest.bytes
        damage = find_damage(job.store, manifest, on_bytes, jobs)
    except CheckpointCorruptError as error:
        damage = [str(error)]
    if damage and job.require().find(entry.location) is None:
        raise CheckpointNotFoundError(f"step {entry.step} ({entry.location}) was removed while it was being read")
    return {
        "step": entry.step,
        "location": entry.location,
        "state": entry.state,
        "files": files,
        "bytes": size,
        "seconds": round(time.monotonic() - started, 3),
        "damage": damage,
    }


def _lines(uri: str, results: list[dict[str, Any]]) -> Iterator[str]:
    cells = []
    for result in results:
        rate = result["bytes"] / max(result["seconds"], 1e-3)
        verdict = "; ".join(each.removeprefix(f"{uri}/{result['location']}/") for each in result["damage"])
        cells.append(
            [
                str(result["step"]),
                str(result["files"]),
                written.size(result["bytes"]),
                f"{written.size(int(rate))}/s",
                (verdict or "all right") + ("" if result["state"] == "live" else f" ({result['state']})"),
            ]
        )
    yield from table((">Step", ">Files", ">Size", ">Rate", "Found"), cells, width())
