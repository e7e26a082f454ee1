"""A job as the demo watches it: phase, step and events, printed as they come."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from dev.demo.kubectl import Kubectl

_STEP = re.compile(r'"step": ?(\d+)')


class JobError(RuntimeError):
    """The job went where it should not; the text holds its last conditions."""


@dataclass(frozen=True)
class JobView:
    """`kubectl get tj NAME -o json`, as far as the demo looks at it."""

    raw: dict[str, Any]

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.raw.get("status") or {})

    @property
    def phase(self) -> str:
        return str(self.status.get("phase") or "")

    @property
    def attempt(self) -> int:
        return int(self.status.get("attempt") or 0)

    @property
    def in_place(self) -> int:
        return int((self.status.get("restarts") or {}).get("inPlace") or 0)

    @property
    def committed(self) -> int:
        return int((self.status.get("lastCheckpoint") or {}).get("step") or 0)

    @property
    def step(self) -> int:
        return int((self.status.get("progress") or {}).get("step") or 0)

    def line(self) -> str:
        progress = (self.status.get("progress") or {}).get("summary") or ""
        gang = (self.status.get("gang") or {}).get("waiting") or ""
        return (
            f"{self.phase or 'Pending':<11} attempt {self.attempt}  {progress:<15} "
            f"last checkpoint {self.committed or 'none':<5} {gang}"
        )


class Watch:
    """Polls one job and prints a line whenever it reads differently."""

    def __init__(self, kubectl: Kubectl, name: str, console: Console) -> None:
        self.kubectl = kubectl
        self.name = name
        self._console = console
        self._last = ""
        self._begin = time.monotonic()

    def look(self) -> JobView:
        view = JobView(self.kubectl.get("trainingjob", self.name))
        line = view.line()
        if line != self._last:
            self._last = line
            self._console.print(f"  [dim]{time.monotonic() - self._begin:6.1f} s[/dim]  {line}", highlight=False)
        return view

    def until(self, done: Callable[[JobView], bool], what: str, seconds: float = 300) -> JobView:
        """Raises JobError when the job fails or nothing comes of it in time."""
        deadline = time.monotonic() + seconds
        while True:
            view = self.look()
            if done(view):
                return view
            if view.phase == "Failed":
                raise JobError(f"{self.name} failed: {_conditions(view)}")
            if time.monotonic() > deadline:
                raise JobError(f"{self.name}: no {what} after {seconds:.0f} s: {_conditions(view)}")
            time.sleep(0.5)

    def pods(self) -> list[str]:
        """The pods of the current attempt that run, by name."""
        items = self.kubectl.get("pods", f"--selector=everstep.dev/job={self.name}")["items"]
        running = [
            p for p in items if p["status"].get("phase") == "Running" and "deletionTimestamp" not in p["metadata"]
        ]
        return sorted(p["metadata"]["name"] for p in running)

    def trained_step(self) -> int:
        """The last step that any rank 0 has printed: newer than the heartbeat."""
        steps = [0]
        for pod in self.pods():
            found = _STEP.findall(self.kubectl("logs", pod, "--container=trainer", "--tail=20"))
            steps += [int(step) for step in found]
        return max(steps)


def _conditions(view: JobView) -> str:
    conditions = view.status.get("conditions") or []
    return "; ".join(f"{c['type']}={c['status']} {c.get('reason', '')}: {c.get('message', '')}" for c in conditions)
