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
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.recovery import ground
from benchmarks.recovery.ground import IMAGES, console
from benchmarks.recovery.peers import jobset, report
from benchmarks.recovery.peers.gangs import EverstepGang, Gang, JobAnewGang, JobGang, JobSetGang
from benchmarks.recovery.report import FAULTS
from tests.support import pod_processes
from tests.support.site import Site

RESULTS = ground.RESULTS / "peers.json"


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
        settings = [each for each in SETTINGS if only in each.name]
        with ground.prepared(instance, {"tests"}) as site, jobset.running(site.cluster) as version:
            found = (result for each in settings for result in compete(site, each, max(1, round(trials * each.trials))))
            ground.record(results, ground.about(site, jobset=version), found)
    ground.show(report.tables(json.loads(results.read_text())), report.BEGIN, report.END, results == RESULTS)


def compete(site: Site, setting: Setting, trials: int) -> Iterator[Result]:
    with ExitStack() as stack:
        field = [kind(site, IMAGES["tests"].name, setting.nodes, setting.stubborn) for kind in setting.kinds]
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
