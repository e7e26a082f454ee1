"""One fault and the recovery from it, with stamps from the API server's watch, the pods' logs and the job's status.

All stamps are of one machine's clock, in seconds since the epoch.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeVar

from everstep.catalog import Catalog
from tests.support import pod_processes
from tests.support.followers import Followers, Pod
from tests.support.site import Site

Fault = Literal["kill-container", "delete-pod", "kill-rank"]
T = TypeVar("T")
_STEP = re.compile(r'^\{"step": (\d+),')


@dataclass(frozen=True)
class Workload:
    """A job that runs on and on. `speaks`: it prints a line a step, so that its first new step has a stamp."""

    name: str
    nodes: int
    image: str
    command: tuple[str, ...]
    """Empty: the image's own."""
    args: tuple[str, ...]
    save_every: int
    speaks: bool
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Result:
    """Seconds since the fault; None where the workload does not tell, or the pods stayed."""

    workload: str
    fault: Fault
    trial: int
    jitter: float
    running: float | None
    first_step: float | None
    phases: dict[str, float]
    lost_steps: int | None
    load_average: float


@dataclass
class Patient:
    """A job under treatment."""

    site: Site
    workload: Workload
    job: str
    uid: str
    followers: Followers

    def settle(self, seconds: float = 120) -> Catalog:
        """Wait until the worker group in force has committed twice: nothing is left to do of an earlier recovery."""

        def settled() -> Catalog | None:
            now = self.site.catalog(self.job)
            if now is None or now.claim is None or now.claim.attempt != now.attempt:
                return None
            own = [entry for entry in now.checkpoints if entry.epoch == now.claim.epoch]
            return now if len(own) >= 2 else None

        return self._until("two commits of the worker group", settled, seconds)

    def strike(self, fault: Fault, trial: int) -> Result:
        """Injure the settled job at a random moment, and take the times until it trains again."""
        draw = random.Random(f"{self.workload.name} {fault} {trial}")
        before = self.settle()
        jitter = draw.uniform(0, 2)
        time.sleep(jitter)
        pods = [pod for pod in self.followers.of_attempt(before.attempt) if "ended" not in pod.stamps]
        pod = draw.choice(pods)
        load = _load_average()
        at = self._injure(fault, pod)
        last = self._last_step(at)
        running: float | None = None
        first: float | None
        if fault == "kill-rank":
            phases, first = self._in_place(before, at)
        else:
            phases, running, first = self._new_gang(before.attempt, at)
        resumed = self._require().claim
        lost = None if last is None or resumed is None else last - _step_of(resumed.resumed)
        return Result(
            self.workload.name,
            fault,
            trial,
            round(jitter, 3),
            None if running is None else round(running - at, 3),
            None if first is None else round(first - at, 3),
            {name: round(value, 3) for name, value in phases.items()},
            lost,
            load,
        )

    def _injure(self, fault: Fault, pod: Pod) -> float:
        if fault == "delete-pod":
            at = time.time()
            self.site.delete_pod(pod.name)
            return at
        find = pod_processes.worker if fault == "kill-rank" else pod_processes.first
        victim = find(pod.address, self.uid)
        at = time.time()
        victim.send(signal.SIGKILL)
        return at

    def _new_gang(self, failed: int, at: float) -> tuple[dict[str, float], float, float | None]:
        def gang() -> list[Pod] | None:
            found = self.followers.of_attempt(failed + 1)
            return found if len(found) == self.workload.nodes and all("running" in p.stamps for p in found) else None

        pods = self._until(f"the gang of attempt {failed + 1} runs", gang, 120)
        running = max(pod.stamps["running"] for pod in pods)
        created = min(pod.stamps["added"] for pod in pods)
        scheduled = max(pod.stamps["scheduled"] for pod in pods)
        detected = self._until("the time of detection", lambda: self._detected(failed), 60)
        phases = {
            "detect": max(0.0, detected - at),
            "teardown": created - max(at, detected),
            "schedule": scheduled - created,
            "start": running - scheduled,
        }
        first = None
        if self.workload.speaks:
            first = self._until("a step", lambda: self._first_step(failed + 1, at), 120)
            phases["load"] = first - running
        return phases, running, first

    def _in_place(self, before: Catalog, at: float) -> tuple[dict[str, float], float]:
        def claimed() -> float | None:
            claim = self._require().claim
            return claim.at.timestamp() if claim is not None and claim.epoch > before.epoch else None

        claim = self._until("a claim in place", claimed, 120)
        first = self._until("a step", lambda: self._first_step(before.attempt, claim), 120)
        return {"restart": claim - at, "load": first - claim}, first

    def _detected(self, failed: int) -> float | None:
        recovery = self.site.status(self.job).get("recovery") or {}
        found = recovery.get("detected") if recovery.get("attempt") == failed else None
        return None if found is None else datetime.fromisoformat(found).timestamp()

    def _first_step(self, attempt: int, after: float) -> float | None:
        lines = [line for pod in self.followers.of_attempt(attempt) for line in pod.lines]
        return min((line.at for line in lines if line.at > after and _STEP.match(line.text)), default=None)

    def _last_step(self, before: float) -> int | None:
        """The last step that was done before the fault; None for a workload that does not tell."""
        lines = [line for pod in list(self.followers.pods.values()) for line in pod.lines[-100:] if line.at <= before]
        found = [(line.at, int(match[1])) for line in lines if (match := _STEP.match(line.text))]
        return max(found)[1] if found else None

    def _require(self) -> Catalog:
        found = self.site.catalog(self.job)
        assert found is not None
        return found

    def _until(self, what: str, check: Callable[[], T | None], seconds: float) -> T:
        return until(
            f"{self.job}: {what}", check, seconds, lambda: f"{self.followers.tails()}\n{self.site.operator.tail()}"
        )


def until(what: str, check: Callable[[], T | None], seconds: float, tell: Callable[[], str]) -> T:
    """Asked again at least each fifth of a second: some answers come from the store or the status. Raises
    AssertionError, with what `tell` says."""
    deadline = time.monotonic() + seconds
    while (found := check()) is None:
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}\n{tell()}")
        time.sleep(0.2)
    return found


def _step_of(location: str | None) -> int:
    return int(location.split("step_")[1][:12]) if location else 0


def _load_average() -> float:
    return round(os.getloadavg()[0], 2)
