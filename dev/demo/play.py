"""The demo from curtain to curtain."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from dev.demo import faults, install, report
from dev.demo.jobs import JobError, JobView, Watch
from dev.demo.target import NAMESPACE, Target
from everstep.catalog import S3Access
from everstep.cli.listing import run_lines
from everstep.cli.runs import find_runs

REFERENCE = "stdlib-lm-reference"
NAME = "stdlib-lm"


class Demo:
    def __init__(self, target: Target, console: Console) -> None:
        self.target = target
        self.kubectl = target.kubectl
        self.console = console
        self.recoveries: list[report.Recovery] = []

    def play(self) -> None:
        """Raises JobError where the interrupted run is not, bit for bit, the one that was never interrupted."""
        with self.act("helm install everstep"):
            install.install(self.target)
            install.prepare_namespace(self.target)
            self.clear()
        with self.act("a run that nothing interrupts, to compare with"):
            self.apply(REFERENCE).until(finished, "end")
        watch = self.run_with_faults()
        self.show(watch)

    @contextmanager
    def act(self, title: str) -> Iterator[None]:
        self.console.rule(f"[bold]{title}", align="left")
        begin = time.monotonic()
        yield
        self.console.print(f"  [dim]({time.monotonic() - begin:.0f} s)[/dim]", highlight=False)

    def clear(self) -> None:
        """Jobs and checkpoints of an earlier demo."""
        self.kubectl("delete", "trainingjob", REFERENCE, NAME, "--ignore-not-found")
        client = self.target.s3.client()
        for name in (REFERENCE, NAME):
            prefix = f"jobs/{NAMESPACE}/{name}/"
            for page in client.get_paginator("list_object_versions").paginate(Bucket=self.target.bucket, Prefix=prefix):
                for item in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
                    client.delete_object(Bucket=self.target.bucket, Key=item["Key"], VersionId=item["VersionId"])

    def apply(self, name: str) -> Watch:
        self.console.print(f"  kubectl apply -f examples/stdlib-lm.yaml   # as {name}", highlight=False)
        self.kubectl.apply(install.job(self.target, name))
        return Watch(self.kubectl, name, self.console)

    def run_with_faults(self) -> Watch:
        with self.act("the same run, and two faults"):
            watch = self.apply(NAME)
            watch.until(lambda job: job.committed >= 20 and running_beyond(job, watch), "checkpoint")
            self.fault(watch, "SIGKILL of a rank", lambda pod: faults.kill_rank(self.kubectl, pod))
            watch.until(lambda job: job.committed >= 60 and running_beyond(job, watch), "checkpoint")
            self.fault(watch, "forced deletion of a pod", lambda pod: faults.tear_away(self.kubectl, pod))
            watch.until(finished, "end")
        return watch

    def fault(self, watch: Watch, name: str, strike: Callable[[str], object]) -> None:
        """Strike the second pod, and wait until the gang trains again."""
        before = watch.look()
        pod = watch.pods()[-1]
        at = watch.trained_step()
        self.console.print(f"  [bold red]{name}[/bold red]: {pod} at step {at}", highlight=False)
        strike(pod)
        committed = report.latest_step(report.catalog_of(self.target, NAME))  # the register's word, not the status's
        recovered = watch.until(lambda job: has_recovered(before, job), "recovery")
        self.recoveries.append(report.recovery_of(recovered, name, at, committed))

    def show(self, watch: Watch) -> None:
        self.console.rule(f"[bold]kubectl describe trainingjob {NAME}", align="left")
        self.console.print(self.kubectl("describe", "trainingjob", NAME), highlight=False, markup=False)
        self.console.rule("[bold]everstep ls", align="left")
        reference, interrupted = (report.catalog_of(self.target, name) for name in (REFERENCE, NAME))
        self.list_checkpoints(interrupted.store.uri)
        table, equal = report.losses_table(report.losses(reference), report.losses(interrupted))
        self.console.print(report.recoveries_table(self.recoveries))
        self.console.print(table)
        if not equal:
            raise JobError("the interrupted run is not the uninterrupted one")
        final = watch.look()
        restarts = final.status.get("restarts") or {}
        self.console.print(
            f"{NAME} lost {sum(r.lost for r in self.recoveries)} steps to {len(self.recoveries)} faults "
            f"({restarts.get('inPlace', 0)} restarts in place, {restarts.get('total', 0)} new gangs) "
            "and ended, to the last bit, where the uninterrupted run did.",
            style="bold green",
            highlight=False,
        )
        self.console.print(
            f"Look around: kubectl -n {NAMESPACE} describe tj {NAME}"
            + (f"   (KUBECONFIG={self.kubectl.kubeconfig})" if self.kubectl.kubeconfig else ""),
            highlight=False,
            soft_wrap=True,
        )

    def list_checkpoints(self, uri: str) -> None:
        s3 = self.target.s3
        for run in find_runs(uri, S3Access(s3.url, s3.region, s3.access_key, s3.secret_key)):
            self.console.print("\n".join(run_lines(run, self.console.width)), highlight=False, markup=False)


def finished(job: JobView) -> bool:
    return job.phase == "Succeeded"


def running_beyond(job: JobView, watch: Watch) -> bool:
    """A few steps past the last checkpoint, so that a fault has something to lose."""
    return job.phase == "Running" and watch.trained_step() >= job.committed + 3


def has_recovered(before: JobView, now: JobView) -> bool:
    """A newer worker group trains, and the phases of its recovery are known; or the run is over."""
    newer = (now.attempt, now.in_place) > (before.attempt, before.in_place)
    return newer and now.phase in ("Running", "Succeeded") and now.committed > before.committed
