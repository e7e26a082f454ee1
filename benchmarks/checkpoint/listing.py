"""`python -m benchmarks.checkpoint.listing`: how long `everstep ls` takes over many checkpoints in many runs.

Starts a real S3 server, writes the registers of the runs into it (the command reads nothing else), and times the
program as a shell starts it, from start to end. Raw results go to benchmarks/checkpoint/results/listing.json.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.checkpoint.servers import seaweedfs
from dev.s3 import S3Endpoint
from everstep.catalog import Best, Catalog, Entry, Location, Register, Retention, S3Access, open_store

RESULTS = Path(__file__).parent / "results" / "listing.json"
COMMAND = (sys.executable, "-c", "from everstep.cli import main; main()", "ls")


def register_of(run: int, count: int) -> Catalog:
    """A run that has committed `count` checkpoints, one each 100 steps and ten minutes."""
    began = datetime.now(UTC) - timedelta(minutes=10 * count)
    entries = tuple(
        Entry(
            seq=number,
            step=100 * number,
            epoch=1,
            attempt=1,
            location=str(Location.new(100 * number, 1)),
            digest=f"{run:032x}{number:032x}",
            bytes=1_300_000_000 + number,
            files=9,
            committed=began + timedelta(minutes=10 * number),
            score=3 / number,
        )
        for number in range(1, count + 1)
    )
    policy = Retention(last=3, best=Best(count=1), every=100)
    return Catalog(attempt=1, epoch=1, sequence=count, checkpoints=entries, retention=policy)


def _first(catalog: Catalog, _: Catalog | None) -> Catalog:
    return catalog


def fill(server: S3Endpoint, runs: int, count: int) -> str:
    access = S3Access(server.url, server.region, server.access_key, server.secret_key)
    place = f"s3://{server.make_bucket('listing')}/jobs"
    for run in range(runs):
        catalog = register_of(run, count)
        register = Register(open_store(f"{place}/team/run-{run:03}", access))
        register.swap(partial(_first, catalog))
    return place


def seconds(server: S3Endpoint, place: str, form: str, expected: int) -> tuple[float, float]:
    """Wall and CPU time of one run of the program, whose answer is looked at."""
    environment = {**os.environ, **server.environment(), "COLUMNS": "80"}
    began, cpu = time.monotonic(), cpu_of_children()
    done = subprocess.run([*COMMAND, place, "-o", form], env=environment, capture_output=True, text=True, check=True)
    took = time.monotonic() - began, cpu_of_children() - cpu
    if form == "json" and json.loads(done.stdout)["checkpoints"] != expected:
        raise RuntimeError(f"not {expected} checkpoints")
    if form == "table" and f" {expected} checkpoints" not in done.stdout.splitlines()[-1]:
        raise RuntimeError(done.stdout[-200:])
    return took


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(
    runs: Annotated[int, typer.Option(help="Runs below one prefix.")] = 100,
    count: Annotated[int, typer.Option(help="Checkpoints of each.")] = 100,
    repeats: Annotated[int, typer.Option(help="Of each form.")] = 7,
    results: Annotated[Path, typer.Option(help="Where the raw results go.")] = RESULTS,
) -> None:
    forms = ("table", "json", "yaml")
    measured: dict[str, list[tuple[float, float]]] = {form: [] for form in forms}
    loads = []
    with seaweedfs() as endpoint:
        place = fill(endpoint, runs, count)
        for _ in range(repeats):
            for form in forms:
                loads.append(os.getloadavg()[0])
                measured[form].append(seconds(endpoint, place, form, runs * count))
    for form, times in measured.items():
        for name, values in zip(("wall", "CPU"), zip(*times, strict=True), strict=True):
            low, middle, high = min(values), statistics.median(values), max(values)
            print(f"{form}, {name}: median {middle:.2f} s ({low:.2f} to {high:.2f}, {repeats} repeats)")
    print(f"load average {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores")
    results.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "runs": runs,
        "checkpoints": count,
        "cores": os.cpu_count(),
        "load": loads,
        "wall and CPU seconds": measured,
    }
    results.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
