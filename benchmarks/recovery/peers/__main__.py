"""`python -m benchmarks.recovery.peers`: the same faults on the same sleepers under everstep, JobSet and plain Jobs.

All gangs of a setting stand side by side on the embedded cluster and are struck one at a time, in an order that is
drawn anew for each round, so that whatever else the machine does falls on all of them alike. Raw results are added to
benchmarks/recovery/results/peers.json after each trial; at the end docs/recovery.md gets the tables.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import page
from benchmarks.about import machine
from benchmarks.recovery.__main__ import PAGE
from benchmarks.recovery.peers import jobset, report
from benchmarks.recovery.peers.gangs import EverstepGang, Gang, JobAnewGang, JobGang, JobSetGang
from benchmarks.recovery.report import FAULTS
from dev import cluster, images
from dev.instance import Level
from tests.plugins.cluster import shared
from tests.support import pod_processes
from tests.support.site import Site, opened

RESULTS = Path(__file__).parents[1] / "results" / "peers.json"
console = Console(highlight=False)


@dataclass(frozen=True)
class Setting:
    """`trials`: the share of those asked for; the slow ones get fewer."""

    name: str
    nodes: int
    kinds: tuple[type[Gang], ...]
    stubborn: bool = False
    trials: float = 1.0


SETTINGS = (
    Setting("2 sleepers", 2, (EverstepGang, JobSetGang, JobAnewGang)),
    Setting("8 sleepers", 8, (EverstepGang, JobSetGang, JobAnewGang), trials=0.5),
    Setting("2 sleepers that ignore SIGTERM", 2, (EverstepGang, JobSetGang), stubborn=True, trials=0.25),
    Setting("2 sleepers, no gang", 2, (EverstepGang, JobGang), trials=0.25),
)


@dataclass(frozen=True)
class Result:
    """Seconds since the fault, as the API server's watch shows it: the first new pod is there, all of them run."""

    setting: str
    kind: str
    fault: str
    trial: int
    jitter: float
    created: float
    running: float
    load_average: float


def main(
    trials: Annotated[int, typer.Option(help="Of each fault, where they are quick.")] = 20,
    instance: Annotated[str, typer.Option(help="Of the embedded cluster.")] = "test",
    only: Annotated[str, typer.Option(help="Settings whose names contain this.")] = "",
    results: Annotated[Path, typer.Option(help="Where the raw results go.")] = RESULTS,
    tables_only: Annotated[bool, typer.Option(help="Make the tables from results that stand.")] = False,
) -> None:
    """Measure recovery beside others. The cluster is started if it is not up; JobSet is built once."""
    if not tables_only:
        measure(trials, instance, [each for each in SETTINGS if only in each.name], results)
    generated = report.tables(json.loads(results.read_text()))
    console.print(generated, markup=False)
    if results == RESULTS:
        PAGE.write_text(page.put(PAGE.read_text(), report.BEGIN, report.END, generated))


def measure(trials: int, instance: str, settings: Sequence[Setting], path: Path) -> None:
    with ExitStack() as stack:
        cluster_running = stack.enter_context(shared(instance, Level.full, s3=True))
        known = {image.short_name: image for image in images.IMAGES}
        images.load(cluster_running.instance, [known["operator"], known["tests"]], console=console)
        s3 = cluster.s3_server(cluster_running.instance).endpoint
        site = stack.enter_context(opened(cluster_running, s3, s3.make_bucket(), known["operator"].name))
        version = stack.enter_context(jobset.running(cluster_running))
        server = json.loads(cluster_running.kubectl("version", "--output=json"))["serverVersion"]["gitVersion"]
        document = json.loads(path.read_text()) if path.exists() else {"runs": []}
        done: list[dict[str, object]] = []
        document["runs"].append({"about": {**machine(), "kubernetes": server, "jobset": version}, "results": done})
        for setting in settings:
            for result in compete(site, setting, known["tests"].name, max(1, round(trials * setting.trials))):
                done.append(asdict(result))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(document, indent=1) + "\n")


def compete(site: Site, setting: Setting, image: str, trials: int) -> Iterator[Result]:
    with ExitStack() as stack:
        field = [kind(site, image, setting.nodes, setting.stubborn) for kind in setting.kinds]
        for gang in field:
            stack.enter_context(gang.existing())
        for trial in range(trials):
            for fault in ("kill-container", "delete-pod"):
                draw = random.Random(f"{setting.name} {fault} {trial}")
                for gang in draw.sample(field, len(field)):
                    result = strike(gang, setting, fault, trial, draw)
                    console.print(
                        f"{setting.name}, {FAULTS[fault]}, {trial + 1}/{trials}: {gang.kind}: "
                        f"created {result.created}, running {result.running}, load {result.load_average}"
                    )
                    yield result


def strike(gang: Gang, setting: Setting, fault: str, trial: int, draw: random.Random) -> Result:
    """Injure the settled gang at a random moment, and take the times until it runs again."""
    gang.settle()
    jitter = draw.uniform(1, 3)
    time.sleep(jitter)  # the kubelet looks about once a second: without it results would lock onto its phase
    before = gang.live()
    assert len(before) == gang.nodes, f"{gang.name} has lost a pod by itself: {gang.followers.tails()}"
    # Whoever ignores SIGTERM must be among those that stay.
    lost = min(before, key=lambda pod: pod.index) if gang.stubborn else draw.choice(before)
    load = os.getloadavg()[0]
    if fault == "delete-pod":
        at = time.time()
        gang.site.delete_pod(lost.name)
    else:
        victim = pod_processes.first(lost.address, gang.mark)
        at = time.time()
        victim.send(signal.SIGKILL)
    fresh = gang.until("the gang is back", lambda: gang.back(before, lost))
    return Result(
        setting.name,
        gang.kind,
        fault,
        trial,
        round(jitter, 3),
        round(min(pod.stamps["added"] for pod in fresh) - at, 3),
        round(max(pod.stamps["running"] for pod in fresh) - at, 3),
        round(load, 2),
    )


if __name__ == "__main__":
    typer.run(main)
