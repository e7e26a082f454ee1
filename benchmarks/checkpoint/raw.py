"""`python -m benchmarks.checkpoint.raw`: what it costs to move 1 GiB, by client, without any checkpoint around it.

Clients run one after another in one interleaved run, so that all meet the same machine; uploads and downloads, into a
server that keeps nothing (`sink`) and into a real one (SeaweedFS, begun anew for each round). Beside each measurement
stands the load that was not ours. Peers that are not installed are left out; `uv run --with obstore --with
's3torchconnector[dcp]'` brings them. Raw results are appended to benchmarks/checkpoint/results/raw-{server}.jsonl.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import page
from benchmarks.checkpoint.raw_clients import CLIENTS, Task
from benchmarks.checkpoint.servers import seaweedfs, sink

RESULTS = Path(__file__).parent / "results"
NEEDS = {
    "obstore": "obstore",
    "s3torchconnector's client": "s3torchconnectorclient",
    "DCP with s3torchconnector's writer": "s3torchconnector",
}
SERVERS = ["sink", "SeaweedFS"]
GIB = 1 << 30


@contextmanager
def serving(server: str, size: int) -> Iterator[Task]:
    """Four objects of `size` bytes on a server that is begun anew."""
    with sink(size) if server == "sink" else seaweedfs() as endpoint:
        yield Task(endpoint.url, endpoint.access_key, endpoint.secret_key, endpoint.make_bucket(), size, 4)


def measure(direction: str, client: str, task: Task) -> dict[str, Any] | None:
    command = [sys.executable, "-m", "benchmarks.checkpoint.raw_clients", direction, client, json.dumps(asdict(task))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        print(f"{direction} {client}: {done.stderr[-500:]}", file=sys.stderr)
        return None
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(
    repeats: int = 7,
    megabytes: Annotated[int, typer.Option(help="per object; there are four")] = 256,
    directions: Annotated[list[str] | None, typer.Option(help="put, get, save; by default all")] = None,
    report: Annotated[bool, typer.Option("--report", help="only show what was measured before")] = False,
    servers: Annotated[list[str] | None, typer.Option(help="which servers; by default all")] = None,
) -> None:
    if report:
        kept = (path.read_text().splitlines() for path in sorted(RESULTS.glob("raw-*.jsonl")))
        print(table([json.loads(line) for lines in kept for line in lines]))
        return
    size, rows = megabytes << 20, []
    for number in range(repeats):
        for server in servers or SERVERS:
            with serving(server, size) as task:
                for direction, clients in CLIENTS.items():
                    for client in clients:
                        if directions and direction not in directions:
                            continue
                        if client in NEEDS and find_spec(NEEDS[client]) is None:
                            continue
                        load, began = os.getloadavg()[0], time.time()
                        whole = replace(task, size=task.size * task.files, files=1)
                        found = measure(direction, client, whole if direction == "save" else task)
                        if found is None:
                            continue
                        gib = task.size * task.files / GIB
                        row = {
                            "repeat": number,
                            "server": server,
                            "direction": direction,
                            "client": client,
                            "gib": gib,
                            "seconds": found["wall"],
                            "cpu_per_gib": found["cpu"] / gib,
                            "load_before": load,
                            "at": began,
                        }
                        rows.append(row)
                        print(json.dumps(row), flush=True)
    RESULTS.mkdir(exist_ok=True)
    for row in rows:
        with (RESULTS / f"raw-{row['server'].lower()}.jsonl").open("a") as file:
            file.write(f"{json.dumps(row)}\n")
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Medians, with the least and the most."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["server"], row["direction"], row["client"]].append(row)
    lines = []
    for (server, direction, client), found in groups.items():
        rates = [row["gib"] / row["seconds"] for row in found]
        cpu = [row["cpu_per_gib"] for row in found]
        load = statistics.median(row["load_before"] for row in found)
        lines.append([server, direction, client, page.spread(rates), page.spread(cpu), f"{load:.1f}", str(len(found))])
    return page.table(["server", "direction", "client", "GiB/s", "client CPU s/GiB", "load", "n"], lines)


if __name__ == "__main__":
    typer.run(main)
