"""What this process remembers of a job between passes. Nothing here is needed to be right: a restart begins without it,
and only repeats work (a probe, a sweep, a whole GET) or takes an age to be younger than it is."""

from __future__ import annotations

import asyncio
from collections.abc import ItemsView
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from everstep.catalog import Catalog, Heartbeat, Snapshot
from everstep_operator.api import TrainingJobStatus

if TYPE_CHECKING:
    from everstep_operator.observe.registers import Polled
    from everstep_operator.reconcile.observation import Observation, Problem

Key = tuple[str, str]
"""Namespace and name of a job."""


@dataclass(slots=True)
class Registers:
    """The last versions read, with their tokens, and when their content last changed (monotonic seconds)."""

    snapshot: Snapshot | None = None
    heartbeat: Heartbeat | None = None
    former: Heartbeat | None = None
    """The last of the worker group before the heartbeat's, of the same attempt."""
    heartbeat_attempt: int = 0
    heartbeat_token: str | None = None
    beat_at: float = 0.0
    news_at: float = 0.0
    phase_at: float = 0.0
    absent_at: float | None = None
    """Since when there is no heartbeat of the attempt in force; None: there is one, or nobody has looked."""
    answered: float = 0.0
    """When a poll was last answered."""
    unanswered: bool = False
    """The last poll was not: what was not seen in the meantime says nothing about the job."""
    polling: Future[Polled] | None = None
    """A poll that was not answered in time and still runs."""


@dataclass(slots=True)
class JobMemory:
    """Of one incarnation (uid) of a job."""

    uid: str
    status: TrainingJobStatus | None = None
    """As it was read or written last, for metrics and logs."""
    counted: int | None = None
    """The register's sequence up to which commits are counted in metrics; None: not looked at yet."""
    told: bool = False
    """The events of the status as this process found it are there."""
    written: str = ""
    """resourceVersion of our own last write of the job: its echo in the watch is no news."""
    registers: Registers = field(default_factory=Registers)
    probed: str | None = None
    """The root whose store passed the probe."""
    fencing: tuple[int, Future[Catalog]] | None = None
    """A fence that was not answered in time, and the attempt that it expects: who expects the same awaits its end."""
    version: int = 0
    """resourceVersion that a list of the job's pods must have reached: the largest that was listed or written. 0: none
    is known, so that only a consistent list will do (it waits up to 100 ms for the API server's cache)."""
    applied: str | None = None
    """resourceVersion of the job's service as our own apply left it: what else is in it then, a webhook put there."""
    stale: int = 0
    """Passes in a row that were dropped, because the job or its register had changed since they looked."""
    hindered_at: float | None = None
    """Since when the cluster has refused something in each pass (monotonic seconds)."""
    last: Observation | None = None
    """What the last whole look saw, for looks at the registers alone."""
    looked: float = 0.0
    """When that was (monotonic seconds)."""
    parted: dict[int, int] = field(default_factory=dict)
    """By attempt: the last step that a pod told of which is gone. No pass may have seen it after its report."""
    removal: asyncio.Task[None] | None = None
    """Removals under way in the background."""
    removal_failures: int = 0
    removal_not_before: float = 0.0
    removal_problem: Problem | None = None
    """Why the last one has failed, as far as it is storage's doing."""
    swept_at: float | None = None
    deleted: bool = False
    """All of its checkpoints were removed."""


class Memories:
    """The memories of all jobs."""

    def __init__(self) -> None:
        self._jobs: dict[Key, JobMemory] = {}
        self._stirred: set[Key] = set()

    def __len__(self) -> int:
        return len(self._jobs)

    def items(self) -> ItemsView[Key, JobMemory]:
        return self._jobs.items()

    def of(self, key: Key, uid: str) -> JobMemory:
        found = self._jobs.get(key)
        if found is None or found.uid != uid:
            if found is not None:
                _drop(found)
            found = self._jobs[key] = JobMemory(uid)
        return found

    def is_echo(self, key: Key, resource_version: str | None) -> bool:
        """Whether that version of a job is the one that this process wrote and has decided on."""
        found = self._jobs.get(key)
        return found is not None and bool(resource_version) and found.written == resource_version

    def stir(self, key: Key) -> None:
        """Something of the job has changed: the next look is a whole one."""
        self._stirred.add(key)

    def is_stirred(self, key: Key) -> bool:
        return key in self._stirred

    def saw(self, key: Key, resource_version: str | None) -> None:
        """A watch told of a pod in this version."""
        found = self._jobs.get(key)
        if found is not None and found.version:
            found.version = max(found.version, as_number(resource_version))

    def settle(self, key: Key) -> None:
        """A whole look begins now; what changes from here on is news again."""
        self._stirred.discard(key)

    def known(self, key: Key) -> JobMemory | None:
        return self._jobs.get(key)

    def forget(self, key: Key) -> JobMemory | None:
        self._stirred.discard(key)
        found = self._jobs.pop(key, None)
        if found is not None:
            _drop(found)
        return found


def as_number(resource_version: str | None) -> int:
    """resourceVersions of one kind are numbers that grow (since Kubernetes 1.35 by contract); 0 for anything else."""
    return int(resource_version) if resource_version and resource_version.isdigit() else 0


def _drop(memory: JobMemory) -> None:
    if memory.removal is not None:
        memory.removal.cancel()
