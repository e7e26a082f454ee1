"""One look at one job: itself, its pods and service from the API server, its registers from storage, side by side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from everstep_operator.api import TrainingJob
from everstep_operator.build import names
from everstep_operator.kube import CORE, ApiError, Json, Kube, core_path, job_path
from everstep_operator.memory import JobMemory, Key, as_number
from everstep_operator.observe.nodes import Nodes
from everstep_operator.observe.registers import read_registers
from everstep_operator.observe.views import pod_view, service_view, trainer_name
from everstep_operator.reconcile.observation import Observation, PodView, Problem, Results, ServiceView, Stored
from everstep_operator.storage import JobStorage, Storages, classify

SIGN_OF_LIFE = 12.0
"""Seconds without a beat or a step after which the nodes of a job's pods are asked about."""
MOST_STRAYS = 32
"""Missing pods that are asked for by name in one look; somebody's hand takes the labels off a few."""


@dataclass(slots=True)
class Seen:
    """The job's object as it was read, or as our last write left it."""

    body: dict[str, Any]
    job: TrainingJob
    containers: dict[str, str] = field(default_factory=dict)
    """Pod name to the name of its trainer container."""
    service: Json | None = None
    """What stands under the name of its service, whoever's it is: as it was read, or as our last apply left it."""
    service_known: bool = False
    """It was looked for in this pass, and nothing tells of a change since."""

    @property
    def key(self) -> Key:
        return self.job.key


class Observer:
    def __init__(
        self,
        kube: Kube,
        storages: Storages,
        *,
        poll_seconds: Callable[[], float],
        progress_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube = kube
        self._storages = storages
        self._poll_seconds = poll_seconds
        self._progress_seconds = progress_seconds
        self._clock = clock
        self._nodes = Nodes(kube, clock)
        self._cluster: str | None = None

    async def job(self, key: Key) -> Seen | None:
        """The job itself; None where it is gone. Raises InvalidJobError."""
        body = await self._kube.find(job_path(*key))
        return None if body is None else Seen(body, TrainingJob.parse(body))

    async def cluster(self) -> str:
        """The uid of kube-system, by which catalogs know their cluster."""
        if self._cluster is None:
            space = await self._kube.get(f"{CORE}/namespaces/kube-system")
            self._cluster = str(space["metadata"]["uid"])
        return self._cluster

    async def storage(self, job: TrainingJob) -> JobStorage | Problem:
        """The job's storage, or why it may not be used."""
        try:
            return await self._storages.of(job)
        except Exception as error:
            problem = classify(error)
            if problem is None:
                raise
            return problem

    async def registers(self, job: TrainingJob, memory: JobMemory, storage: JobStorage | Problem) -> Stored:
        if isinstance(storage, Problem):
            return Stored(problem=storage)
        return await read_registers(storage, memory, job.status.attempt, self._clock)

    async def belongings(self, seen: Seen, memory: JobMemory) -> tuple[PodView, ...]:
        """The job's pods of every attempt, live; and its service, into `seen`."""
        meta = seen.job.metadata
        seen.service, pods = await asyncio.gather(self._service(seen), self._pods(seen, memory))
        pods = [*pods, *await self._strays(seen, {pod["metadata"]["name"] for pod in pods})]
        seen.containers = {pod["metadata"]["name"]: trainer_name(pod) or "" for pod in pods}
        views = (pod_view(pod, meta.name, meta.uid) for pod in pods)
        return tuple(sorted((view for view in views if view is not None), key=lambda view: (view.attempt, view.index)))

    async def _service(self, seen: Seen) -> Json | None:
        meta, gang = seen.job.metadata, seen.job.status.gang
        alone = seen.job.spec.nodes <= 1 and (gang is None or (gang.nodes or 0) <= 1)
        if alone or seen.service_known:  # a gang of one needs none
            return seen.service
        found = await self._kube.find(core_path(meta.namespace, "services", names.service_name(meta.name)))
        seen.service_known = True
        return found

    async def _strays(self, seen: Seen, listed: set[str]) -> list[Json]:
        """Pods of the gang in force that are still there though no list by label finds them: without their labels
        they would run on, nobody's, beside the attempt that follows."""
        meta, status = seen.job.metadata, seen.job.status
        over = status.phase is not None and status.phase.finished
        if status.gang is None or over or any(entry.attempt == status.attempt for entry in status.history):
            return []
        gang = (names.pod_name(meta.name, status.attempt, index) for index in range(status.gang.nodes or 0))
        missing = [name for name in gang if name not in listed][:MOST_STRAYS]
        found = await asyncio.gather(*(self._kube.find(core_path(meta.namespace, "pods", name)) for name in missing))
        return [pod for pod in found if pod is not None and names.belongs(pod["metadata"], meta.uid)]

    async def _pods(self, seen: Seen, memory: JobMemory) -> list[Json]:
        """Not older than what this process has listed, written and been told of. The first list is a consistent one,
        and from then on nobody but the holder of the Lease creates pods."""
        meta = seen.job.metadata
        path, selector = core_path(meta.namespace, "pods"), names.selector(meta.uid)
        try:
            pods, version = await self._kube.list_at(path, memory.version, labelSelector=selector)
        except ApiError as error:
            if not (memory.version and error.version_unknown):
                raise  # a server that is busy is not asked for something dearer at once
            pods, version = await self._kube.list_at(path, 0, labelSelector=selector)
            memory.version = 0  # of another past, as after a restore of etcd
        memory.version = max(memory.version, as_number(version))
        return pods

    async def again(self, last: Observation, memory: JobMemory) -> Observation | None:
        """The last whole look with fresh registers and time; None where that would not do."""
        job = last.job
        storage = await self.storage(job)
        stored = await self.registers(job, memory, storage)
        if stored.problem is not None or _suspects(last.pods, stored):
            return None
        results = Results(probed=last.results.probed)
        poll = self._poll_seconds()
        return replace(last, now=self._kube.clock.now(), stored=stored, results=results, nodes=(), poll_seconds=poll)

    async def observe(
        self,
        seen: Seen,
        memory: JobMemory,
        stored: Stored,
        results: Results,
        known: tuple[PodView, ...] | None = None,
    ) -> Observation:
        """Everything that a decision needs. `stored` is read once a pass, pods before each decision of it but those
        that are `known` not to have changed since."""
        cluster = await self.cluster()
        pods = await self.belongings(seen, memory) if known is None else known
        suspects = _suspects(pods, stored)
        return Observation(
            job=seen.job,
            now=self._kube.clock.now(),
            cluster=cluster,
            pods=pods,
            services=_services(seen, memory),
            nodes=await self._nodes.look(suspects) if suspects else (),
            stored=stored,
            results=results,
            poll_seconds=self._poll_seconds(),
            progress_seconds=self._progress_seconds,
            parted=dict(memory.parted),
            hindered=0.0 if memory.hindered_at is None else self._clock() - memory.hindered_at,
        )


def _services(seen: Seen, memory: JobMemory) -> tuple[ServiceView, ...]:
    meta, found = seen.job.metadata, seen.service
    if found is None or not names.belongs(found["metadata"], meta.uid):
        return ()
    return (service_view(found, meta.name, meta.uid, memory.applied),)


def _suspects(pods: Iterable[PodView], stored: Stored) -> set[str]:
    """Nodes to ask about: of pods that are in doubt, and of those that failed, perhaps because their node goes."""
    asked = (pod for pod in pods if pod.phase == "Failed" or (not pod.terminal and _in_doubt(pod, stored)))
    return {pod.node for pod in asked if pod.node}


def _in_doubt(pod: PodView, stored: Stored) -> bool:
    beat = stored.heartbeat
    if pod.deleting or beat is None or beat.beat_age > SIGN_OF_LIFE:
        return True
    return beat.heartbeat.phase == "training" and beat.still > SIGN_OF_LIFE
