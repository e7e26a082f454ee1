"""Pods and services: each write safe to repeat, and unable to touch what is not this job's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from everstep_operator.act.refusals import cluster_problem, pod_problem
from everstep_operator.api import CONTROLLER
from everstep_operator.build import names
from everstep_operator.kube import ApiError, Kube, core_path
from everstep_operator.observe import Seen
from everstep_operator.reconcile.observation import Problem, ProblemKind
from everstep_operator.reconcile.plan import CreatePod, DeletePod, DryRunPod, EnsureService, ReadLogs

APPLY = "application/apply-patch+yaml"
LOG_LINES = 100
LOG_BYTES = 16 << 10
AT_ONCE = 32


class Pods:
    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._room = asyncio.Semaphore(AT_ONCE)

    async def dry_run(self, seen: Seen, action: DryRunPod) -> Problem | None:
        try:
            await self._kube.create(core_path(seen.job.metadata.namespace, "pods"), action.manifest, dryRun="All")
        except ApiError as error:
            return None if error.already_exists else pod_problem(error)
        return None

    async def create(self, seen: Seen, actions: Sequence[CreatePod]) -> Problem | None:
        """The pods of a gang, side by side. The first problem, if there is one; the others were tried all the same."""
        problems = await asyncio.gather(*(self._create(seen, action) for action in actions))
        return next((problem for problem in problems if problem), None)

    async def _create(self, seen: Seen, action: CreatePod) -> Problem | None:
        namespace = seen.job.metadata.namespace
        try:
            async with self._room:
                await self._kube.create(core_path(namespace, "pods"), action.manifest)
        except ApiError as error:
            if error.already_exists:
                return await self._check_owned(seen, action.name)
            return pod_problem(error)
        return None

    async def _check_owned(self, seen: Seen, name: str) -> Problem | None:
        meta = seen.job.metadata
        pod = await self._kube.find(core_path(meta.namespace, "pods", name))
        if pod is None:
            return Problem(ProblemKind.CLUSTER, "PodVanished", f"pod {name} existed and is gone: trying again")
        if (pod["metadata"].get("labels") or {}).get(names.JOB_UID) == meta.uid:
            return None
        return Problem(
            ProblemKind.POD_REFUSED,
            "PodNameTaken",
            f"a pod named {name} exists in {meta.namespace} and is not this job's: delete it, or rename the job",
        )

    async def delete(self, seen: Seen, actions: Sequence[DeletePod]) -> Problem | None:
        problems = await asyncio.gather(*(self._delete(seen, action) for action in actions))
        return next((problem for problem in problems if problem), None)

    async def _delete(self, seen: Seen, action: DeletePod) -> Problem | None:
        options: dict[str, object] = {"preconditions": {"uid": action.uid}}
        if action.grace is not None:
            options["gracePeriodSeconds"] = action.grace
        try:
            async with self._room:
                await self._kube.delete(core_path(seen.job.metadata.namespace, "pods", action.name), options)
        except ApiError as error:
            # Another uid: ours is gone already.
            return None if error.conflict else cluster_problem(error)
        return None

    async def ensure_service(self, seen: Seen, action: EnsureService) -> Problem | None:
        path = core_path(seen.job.metadata.namespace, "services", action.name)
        try:
            await self._kube.patch(path, action.manifest, kind=APPLY, fieldManager=CONTROLLER, force="true")
        except ApiError as error:
            return pod_problem(error)
        return None

    async def logs(self, seen: Seen, action: ReadLogs) -> dict[str, str]:
        tails = await asyncio.gather(*(self._log(seen, name) for name in action.pods))
        return dict(zip(action.pods, tails, strict=True))

    async def _log(self, seen: Seen, name: str) -> str:
        path = core_path(seen.job.metadata.namespace, "pods", name, "log")
        query = {"tailLines": str(LOG_LINES)}
        container = seen.containers.get(name)
        if container:
            query["container"] = container
        try:
            async with asyncio.timeout(5):
                return (await self._kube.text(path, **query))[-LOG_BYTES:]
        except (ApiError, TimeoutError):
            return ""  # for a message only; the node may be the very thing that is lost
