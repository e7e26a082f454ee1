"""Strikes a running job as its trial says: by the clock in a step, or from the gate while it holds a request."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from everstep.catalog import Catalog
from tests.faults.trials import Trial
from tests.support import pod_processes
from tests.support.followers import Followers, Pod
from tests.support.gate import Write

_SHARD = re.compile(r"checkpoints/step_(\d{12})-\d+-[0-9a-f]+/__(\d+)_\d+\.distcp$")
_STEP = re.compile(r'^\{"step": (\d+),')
HELD = 60
"""Seconds that a late request is held at most, waiting for a successor."""


@dataclass
class Striker:
    """A gate's watcher. `struck` is set once, when the fault was delivered; `note` says what became of it."""

    trial: Trial
    uid: str
    prefix: str
    followers: Followers
    delete_pod: Callable[[str], None]
    catalog: Callable[[], Catalog | None]
    struck: threading.Event = field(default_factory=threading.Event)
    note: str = ""
    _taken: threading.Lock = field(default_factory=threading.Lock)

    # by the clock

    def strike_in_step(self) -> None:
        """Blocks until the step is printed, then strikes after the trial's jitter."""
        self.followers.until(f"step {self.trial.step}", lambda: self._seen(self.trial.step), 120)
        time.sleep(self.trial.jitter)
        pods = self.followers.of_attempt(1)
        self._strike(next(pod for pod in pods if pod.index == self.trial.rank))

    def _seen(self, step: int) -> bool:
        lines = (line.text for pod in list(self.followers.pods.values()) for line in pod.lines[-5:])
        return any((found := _STEP.match(text)) and int(found[1]) >= step for text in lines)

    # at the gate

    def wants(self, write: Write) -> bool:
        if self.trial.moment == "step" or self.struck.is_set() or not write.key.startswith(self.prefix):
            return False
        return self._is_the_one(write) and self._taken.acquire(blocking=False)

    def _is_the_one(self, write: Write) -> bool:
        if self.trial.moment == "shard":
            found = _SHARD.search(write.key)
            return found is not None and (int(found[1]), int(found[2])) == (self.trial.step, self.trial.rank)
        if not write.key.endswith("/catalog.json"):
            return False
        steps = [entry["step"] for entry in json.loads(write.body)["checkpoints"]]
        return max(steps, default=0) == self.trial.step  # the first register that names it is its commit

    def before(self, write: Write) -> bool:
        if self.trial.moment == "swap":
            return True
        reigning = self._epoch()
        victim = self._strike(self._victim(write))
        if self.trial.fate == "late":
            self.note += f"; held until {self._successor(reigning)}"
        elif self.trial.fate == "applied" and not self.trial.bystander:
            pod_processes.gone(victim)
        return self.trial.fate != "lost"

    def after(self, write: Write) -> bool:
        if self.trial.moment != "swap":
            return True
        self._strike(self._victim(write))
        return False

    def _victim(self, write: Write) -> Pod:
        sender = self.followers.at(write.peer)
        if not self.trial.bystander:
            return sender
        return next(pod for pod in self.followers.of_attempt(sender.attempt) if pod.uid != sender.uid)

    def _strike(self, pod: Pod) -> pod_processes.Process:
        victim = pod_processes.worker(pod.address, self.uid)
        if self.trial.fault == "kill-worker":
            victim.send(signal.SIGKILL)
        elif self.trial.fault == "kill-container":
            pod_processes.first(pod.address, self.uid).send(signal.SIGKILL)
        else:
            self.delete_pod(pod.name)
        self.note = f"{self.trial.fault} {pod.name}"
        self.struck.set()
        return victim

    def _successor(self, reigning: int) -> str:
        """Wait until another worker group has claimed."""
        deadline = time.monotonic() + HELD
        while time.monotonic() < deadline:
            now = self.catalog()
            if now is not None and now.claim is not None and now.claim.epoch > reigning:
                return f"the claim of epoch {now.claim.epoch}"
            time.sleep(0.1)
        return "nobody came"

    def _epoch(self) -> int:
        now = self.catalog()
        return 0 if now is None else now.epoch
