"""`python -m benchmarks.recovery`: injures jobs on the embedded cluster, again and again, and times their recovery.

Raw results are added to benchmarks/recovery/results/recovery.json after each trial; at the end docs/recovery.md gets
tables of each workload as it was measured last.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.recovery import ground, report
from benchmarks.recovery.ground import ENDLESS, IMAGES, console
from benchmarks.recovery.trial import Patient, Result, Workload
from tests.support.site import Site

RESULTS = ground.RESULTS / "recovery.json"
# Pod 0 keeps the contract, the others only sleep, and all of them heed SIGTERM: what is timed is the gang's way back.
SLEEP = """
case "$PET_RDZV_CONF" in is_host=1*) exec python3 /opt/lite/lite.py "$@" ;; esac
trap 'exit 143' TERM; sleep 1000000 & wait
"""
SLEEPER = ("sh", "-c", SLEEP, "sleeper")
STEPS = (f"--total-steps={ENDLESS}", "--seconds-per-step=0.1", "--save-every=10")
RECIPE = ("torchrun", "-m", "everstep.train", f"--steps={ENDLESS}", "--evaluation.every=0")
WORKLOADS = (
    Workload("2 sleepers", 2, "tests", SLEEPER, STEPS, 10, False, ("kill-container", "delete-pod")),
    Workload("FSDP on 2 pods", 2, "trainer", (), RECIPE, 10, True, ("kill-rank", "kill-container", "delete-pod")),
    Workload("8 sleepers", 8, "tests", SLEEPER, STEPS, 10, False, ("kill-container", "delete-pod")),
)


def main(
    trials: Annotated[int, typer.Option(help="Of each fault on each workload.")] = 20,
    instance: Annotated[str, typer.Option(help="Of the embedded cluster.")] = "test",
    only: Annotated[str, typer.Option(help="Workloads whose names contain this.")] = "",
    results: Annotated[Path, typer.Option(help="Where the raw results go.")] = RESULTS,
    tables_only: Annotated[bool, typer.Option(help="Make the tables from results that stand.")] = False,
) -> None:
    """Measure recovery. The cluster is started if it is not up."""
    if not tables_only:
        workloads = [each for each in WORKLOADS if only in each.name]
        with ground.prepared(instance, {each.image for each in workloads}) as site:
            found = (result for each in workloads for result in treat(site, each, trials))
            ground.record(results, ground.about(site), found)
    ground.show(report.tables(json.loads(results.read_text())), report.BEGIN, report.END, results == RESULTS)


def treat(site: Site, workload: Workload, trials: int) -> Iterator[Result]:
    """One job, injured over and over: a recovery ends where the next begins."""
    job = workload.name.lower().replace(" ", "-")
    job = job if job[0].isalpha() else f"job-{job}"
    checkpoint = {"interval": {"steps": workload.save_every}, "keepLast": 2}
    with site.followers(job) as followers:
        policy = {"maxRestarts": ENDLESS}
        spec = {"nodes": workload.nodes, "failurePolicy": policy}
        uid = site.apply(job, IMAGES[workload.image].name, workload.args, checkpoint, workload.command, **spec)
        patient = Patient(site, workload, job, uid, followers)
        for trial in range(trials):
            for fault in workload.faults:
                result = patient.strike(fault, trial)
                console.print(
                    f"{workload.name}, {report.FAULTS[fault]}, {trial + 1}/{trials}: running {result.running}, "
                    f"first step {result.first_step}, {result.phases}, lost {result.lost_steps}, "
                    f"load {result.load_average}"
                )
                yield result
        site.delete(job)


if __name__ == "__main__":
    typer.run(main)
