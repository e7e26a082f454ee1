"""One cgroup an instance: every process of it, pods' included, can be found there and ended, whatever it forked.

Works with cgroup v2 and with v1, where an instance has a directory in each hierarchy and one tracks its daemons.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from pathlib import Path

from dev.instance import Instance, InstanceError

PARENT = "everstep"
TRACKERS = ("freezer", "pids", "systemd")  # v1: hierarchies that limit nothing of what is in them


class Cgroup:
    """The cgroup of one instance. It needs root."""

    def __init__(self, instance: Instance) -> None:
        # Two caches on one machine may each have an instance of this name.
        self.relative = f"{PARENT}/{instance.name}-{hashlib.sha256(str(instance.state).encode()).hexdigest()[:8]}"

    @property
    def kubelet_root(self) -> str:
        """What the kubelet calls its cgroup root."""
        return f"/{self.relative}"

    @property
    def daemons(self) -> Path:
        """The directory whose cgroup.procs the instance's daemons write themselves into."""
        roots = {root.name: root for root in hierarchies()}
        root = next((roots[name] for name in TRACKERS if name in roots), next(iter(roots.values())))
        return root / self.relative / "daemons"

    def create(self) -> None:
        """Make the directories, with all controllers enabled for what is below."""
        for root in hierarchies():
            (root / self.relative).mkdir(parents=True, exist_ok=True)
            controllers = root / "cgroup.controllers"
            if controllers.exists():
                enable = " ".join(f"+{name}" for name in controllers.read_text().split())
                for directory in (root, root / PARENT, root / self.relative):
                    try:
                        (directory / "cgroup.subtree_control").write_text(enable)
                    except OSError as error:
                        raise InstanceError(f"cgroup {directory} cannot pass controllers on: {error}") from error
        self.daemons.mkdir(exist_ok=True)

    def members(self, below: str = "") -> set[int]:
        """The pids of everything in it, or only of what is below one of its directories."""
        found: set[int] = set()
        for root in hierarchies():
            for directory, _, _ in os.walk(root / self.relative / below):  # passes over what vanishes meanwhile
                with contextlib.suppress(OSError):
                    found |= {int(line) for line in (Path(directory) / "cgroup.procs").read_text().split()}
        return found - {0, os.getpid()}

    def kill(self, below: str = "", *, seconds: float = 20.0) -> None:
        """SIGKILL its members again and again until there is none."""
        deadline = time.monotonic() + seconds
        while members := self.members(below):
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes {sorted(members)} in cgroup {self.relative} do not die")
            time.sleep(0.02)

    def remove(self, *, seconds: float = 10.0) -> None:
        """Remove the directories; their processes must have ended."""
        deadline = time.monotonic() + seconds
        for root in hierarchies():
            top = root / self.relative
            while top.exists():
                directories = [Path(path) for path, _, _ in os.walk(top, topdown=False)]
                for directory in directories:
                    with contextlib.suppress(OSError):  # busy for a moment after the last process ended
                        directory.rmdir()
                if top.exists() and time.monotonic() > deadline:
                    raise TimeoutError(f"cgroup {top} cannot be removed: it is busy")
            with contextlib.suppress(OSError):  # other instances are in it, or it is not there
                top.parent.rmdir()


def hierarchies() -> list[Path]:
    """Where cgroups are mounted: one place with v2, one a controller with v1 (and a v2 one beside them, if any)."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    found = [Path(fields[1]) for fields in mounts if fields[2] in ("cgroup", "cgroup2")]
    if not found:
        raise InstanceError("no cgroup hierarchy is mounted: a cluster that runs pods needs cgroup v1 or v2")
    return list(dict.fromkeys(found))
