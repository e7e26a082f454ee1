"""`python -m benchmarks.burst`: hundreds of jobs at once on an API server without nodes, some of them hopeless.

How long until every sound job is fenced and has its gang, and what that costs. The result is added to
benchmarks/burst/results/burst.json, and its table goes to docs/scale.md.
"""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from benchmarks import page
from benchmarks.about import machine
from benchmarks.burst import report
from benchmarks.burst.cost import Cost
from benchmarks.burst.crowd import CRASHING, NODES, STRANDED, Crowd
from dev.instance import Level
from dev.paths import REPOSITORY
from dev.s3 import S3Server
from everstep_operator.api import GROUP, PLURAL, VERSION
from tests.plugins.audit import Request
from tests.plugins.cluster import RunningCluster, shared
from tests.support.operator_process import OperatorProcess
from tests.support.rig import write_profiles

RESULTS = Path(__file__).parent / "results" / "burst.json"
PAGE = REPOSITORY / "docs" / "scale.md"
CRD = REPOSITORY / "crds" / "trainingjobs.everstep.dev.yaml"
# What the chart sets by default, not the tests' haste.
SETTINGS = {
    "LOG_LEVEL": "INFO",
    "LOG_FORMAT": "json",
    "LEASE_SECONDS": "15",
    "LEASE_RENEW_SECONDS": "5",
    "POLL_SECONDS": "5",
    "PROGRESS_SECONDS": "15",
}
console = Console(highlight=False)


def main(
    jobs: Annotated[int, typer.Option(min=1, help="Sound jobs, of two pods each.")] = 500,
    rest_seconds: Annotated[float, typer.Option(help="How long the running jobs are watched afterwards.")] = 60,
    limit_seconds: Annotated[float, typer.Option(help="Give up after this long.")] = 600,
    hopeless: Annotated[bool, typer.Option(help="Two hopeless jobs stand before all others.")] = True,
    results: Annotated[Path, typer.Option(help="Where the raw results go.")] = RESULTS,
    write_page: Annotated[bool, typer.Option(help="Put the table into docs/scale.md.")] = True,
) -> None:
    """Measure a burst of jobs. The API server is an instance of its own, which goes afterwards."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = S3Server(directory / "s3")
        stack.callback(server.remove)
        s3 = server.start()
        cluster = stack.enter_context(shared("burst", Level.api, s3=False))
        cluster.apply(CRD.read_text())
        until("the CRD is served", lambda: served(cluster), 30)
        namespace = stack.enter_context(cluster.namespace())
        bucket = s3.make_bucket()
        crowd = Crowd(cluster.kubeconfig, namespace, s3, bucket)
        dead = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
        endpoint = f"http://127.0.0.1:{dead.getsockname()[1]}"
        profiles = write_profiles(directory, s3, bucket, s3.url)
        document = yaml.safe_load(profiles.read_text())
        document["profiles"].append({**document["profiles"][0], "name": "dead", "endpoint": endpoint})
        profiles.write_text(yaml.safe_dump(document))
        operator = OperatorProcess(cluster.kubeconfig, directory, namespace, profiles, settings=SETTINGS)
        stack.callback(operator.kill)
        operator.start()
        until("the operator leads", lambda: "holding the Lease" in operator.tail(), 60)
        stack.enter_context(crowd.watched())
        run = measure(crowd, cluster, operator, jobs, endpoint, hopeless, rest_seconds, limit_seconds)
    add(results, run)
    if write_page:
        PAGE.write_text(page.put(PAGE.read_text(), report.BEGIN, report.END, report.tables(run)))
    console.print(report.tables(run))


def measure(
    crowd: Crowd,
    cluster: RunningCluster,
    operator: OperatorProcess,
    jobs: int,
    dead_endpoint: str,
    hopeless: bool,
    rest_seconds: float,
    limit_seconds: float,
) -> dict[str, Any]:
    assert operator.process is not None
    pid, api_pid = operator.process.pid, api_server_pid(cluster)
    sound = [f"job-{number}" for number in range(jobs)]
    told = machine()
    before, api_before, position = Cost.of(pid), Cost.of(api_pid), cluster.audit.position()
    began = time.monotonic()
    first = [STRANDED, CRASHING] if hopeless else []  # all others stand behind them
    crowd.create([*first, *sound], {STRANDED: dead_endpoint})
    console.print(f"{jobs} jobs created in {time.monotonic() - began:.1f} s")

    def progress() -> bool:
        done = sum(1 for name in sound if crowd.seen[name].gang)
        console.print(f"{time.monotonic() - began:6.1f} s: {done} gangs", end="\r")
        return done == jobs

    until("all gangs are created", progress, limit_seconds)
    until("all fences show", lambda: all(crowd.seen[name].fenced for name in sound), limit_seconds)
    after, api_after, middle = Cost.of(pid), Cost.of(api_pid), cluster.audit.position()
    settle = time.monotonic()
    until("the pods run", lambda: running(cluster, crowd.namespace) >= jobs, 120)
    console.print(f"all run {time.monotonic() - settle:.1f} s later; watching them for {rest_seconds:g} s")
    rest_position, rest = cluster.audit.position(), Cost.of(pid)
    time.sleep(rest_seconds)
    end = Cost.of(pid)
    seen = [crowd.seen[name] for name in sound]
    waits = [each.gang - each.created for each in seen]
    own = "everstep-operator"
    return {
        "about": {**told, "jobs": jobs, "hopeless": len(first), "nodes": NODES},
        "created": max(each.created for each in seen) - began,
        "fenced": max(each.fenced for each in seen) - began,
        "gangs": max(each.gang for each in seen) - began,
        "median": report.quantile(waits, 0.5),
        "p99": report.quantile(waits, 0.99),
        "waits": waits,
        "cost": {
            "operator_peak_mib": end.peak_mib,
            "operator_cpu": after.cpu_seconds - before.cpu_seconds,
            "api_cpu": api_after.cpu_seconds - api_before.cpu_seconds,
            "rest_cpu_minute": (end.cpu_seconds - rest.cpu_seconds) * 60 / rest_seconds,
        },
        "requests": counts(cluster.audit.since(position), cluster.audit.since(middle), own),
        "rest_requests": counts(cluster.audit.since(rest_position), [], own),
    }


def counts(requests: list[Request], later: list[Request], agent: str) -> dict[str, int]:
    """Requests by verb and resource, without those that came later; they are in the order in which they ended."""
    own = [each for each in requests[: len(requests) - len(later)] if agent in each.agent]
    return dict(Counter(f"{each.verb} {each.resource}" for each in own))


def served(cluster: RunningCluster) -> bool:
    """Whether TrainingJobs can be listed; `kubectl wait` fails while the CRD has no conditions at all."""
    try:
        return bool(cluster.kubectl("get", "--raw", f"/apis/{GROUP}/{VERSION}/{PLURAL}"))
    except AssertionError:
        return False


def running(cluster: RunningCluster, namespace: str) -> int:
    """Jobs whose phase is Running."""
    phases = cluster.kubectl("get", "tj", "-n", namespace, "-o", "jsonpath={.items[*].status.phase}")
    return phases.split().count("Running")


def api_server_pid(cluster: RunningCluster) -> int:
    record = json.loads((cluster.instance.processes / "kube-apiserver.json").read_text())
    return int(record["pid"])


def until(what: str, done: Callable[[], bool], seconds: float) -> None:
    """Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:g} s still not: {what}")
        time.sleep(0.5)


def add(path: Path, run: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    path.write_text(json.dumps({"runs": [*runs, run]}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
