"""Pods and services: each write safe to repeat, and unable to touch what is not this job's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from everstep_operator.act.refusals import cluster_problem, pod_problem
from everstep_operator.act.status import StaleError
from everstep_operator.api import CONTROLLER
from everstep_operator.build import names
from everstep_operator.kube import ApiError, Json, Kube, core_path
from everstep_operator.memory import JobMemory, as_number
from everstep_operator.observe import Seen
from everstep_operator.reconcile.observation import Problem, ProblemKind
from everstep_operator.reconcile.plan import CreatePod, DeletePod, DryRunPod, EnsureService, MarkPod, ReadLogs

APPLY = "application/apply-patch+yaml"
LOG_LINES = 100
LOG_BYTES = 16 << 10
LOG_MOST = 1 << 20
"""Bytes that are fetched: a line may be as long as its author likes."""
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

    async def create(self, seen: Seen, memory: JobMemory, actions: Sequence[CreatePod]) -> Problem | None:
        """The pods of a gang, side by side. The first problem, if there is one; the others were tried all the same."""
        problems = await asyncio.gather(*(self._create(seen, memory, action) for action in actions))
        return next((problem for problem in problems if problem), None)

    async def _create(self, seen: Seen, memory: JobMemory, action: CreatePod) -> Problem | None:
        namespace = seen.job.metadata.namespace
        try:
            async with self._room:
                made = await self._kube.create(core_path(namespace, "pods"), action.manifest)
            _wrote(memory, made)
        except ApiError as error:
            if error.already_exists:
                return await self._check_owned(seen, memory, action)
            return pod_problem(error)
        return None

    async def _check_owned(self, seen: Seen, memory: JobMemory, action: CreatePod) -> Problem | None:
        meta, name = seen.job.metadata, action.name
        pod = await self._kube.find(core_path(meta.namespace, "pods", name))
        if pod is None:
            return Problem(ProblemKind.CLUSTER, "PodVanished", f"pod {name} existed and is gone: trying again")
        labels = {key: action.manifest["metadata"]["labels"][key] for key in names.POD_LABELS}
        foreign = _foreign(seen, "pod", pod)
        if foreign is not None or labels.items() <= (pod["metadata"].get("labels") or {}).items():
            return foreign
        return await self.mark(seen, memory, MarkPod(name, pod["metadata"]["resourceVersion"], labels))

    async def mark(self, seen: Seen, memory: JobMemory, action: MarkPod) -> Problem | None:
        path = core_path(seen.job.metadata.namespace, "pods", action.name)
        change: Json = {"resourceVersion": action.resource_version, "labels": action.labels}
        if action.owner:
            change["ownerReferences"] = [seen.job.owner_reference()]
        try:
            marked = await self._kube.patch(path, {"metadata": change})
        except ApiError as error:
            memory.version = 0
            return None if error.conflict or error.not_found else pod_problem(error)
        _wrote(memory, marked)
        meta = marked["metadata"]
        owned = not action.owner or names.is_owned(meta, seen.job.metadata.uid)
        if owned and action.labels.items() <= (meta.get("labels") or {}).items():
            return None
        taken = "labels under everstep.dev/" if owned else "the owner"
        message = f"an admission webhook takes {taken} away from the pod {action.name}"
        return Problem(ProblemKind.POD_REFUSED, "PodLabelsTaken", message)

    async def delete(self, seen: Seen, memory: JobMemory, actions: Sequence[DeletePod]) -> Problem | None:
        problems = await asyncio.gather(*(self._delete(seen, memory, action) for action in actions))
        return next((problem for problem in problems if problem), None)

    async def _delete(self, seen: Seen, memory: JobMemory, action: DeletePod) -> Problem | None:
        options: dict[str, object] = {"preconditions": {"uid": action.uid}}
        if action.grace is not None:
            options["gracePeriodSeconds"] = action.grace
        try:
            async with self._room:
                left = await self._kube.delete(core_path(seen.job.metadata.namespace, "pods", action.name), options)
            if left is None:
                memory.version = 0  # gone before we asked: what we know of is older than that
            else:
                _wrote(memory, left)
        except ApiError as error:
            # Another uid: ours is gone already.
            memory.version = 0
            return None if error.conflict else cluster_problem(error)
        return None

    async def ensure_service(self, seen: Seen, memory: JobMemory, action: EnsureService) -> Problem | None:
        path = core_path(seen.job.metadata.namespace, "services", action.name)
        try:
            standing = seen.service or await self._kube.find(path)
            foreign = standing and _foreign(seen, "service", standing)
            if foreign:
                return foreign
            made = await self._apply(path, _as_seen(action.manifest, standing))
        except ApiError as error:
            if error.conflict and standing is not None:
                raise StaleError(str(error)) from error  # another one of its name, or none, by now
            return pod_problem(error)
        seen.service, memory.applied = made, made["metadata"].get("resourceVersion")
        if made["spec"].get("clusterIP") in (None, "", "None"):
            message = f"the service {action.name} was made without an address of its own: delete it"
            return Problem(ProblemKind.POD_REFUSED, "ServiceWithoutAddress", message)
        return _altered(action, made)

    async def _apply(self, path: str, manifest: Json) -> Json:
        try:
            return await self._kube.patch(path, manifest, kind=APPLY, fieldManager=CONTROLLER, force="true")
        except ApiError as error:
            spec = manifest["spec"]
            if error.status != 422 or "clusterIP" not in spec:
                raise
            # somebody else has the former address by now: any other will do, and the gang has to learn it
            anywhere = {**manifest, "spec": {key: value for key, value in spec.items() if key != "clusterIP"}}
            return await self._kube.patch(path, anywhere, kind=APPLY, fieldManager=CONTROLLER, force="true")

    async def logs(self, seen: Seen, action: ReadLogs) -> dict[str, str]:
        """The ends of the logs, each line with the container runtime's stamp."""
        tails = await asyncio.gather(*(self._log(seen, name) for name in action.pods))
        return dict(zip(action.pods, tails, strict=True))

    async def _log(self, seen: Seen, name: str) -> str:
        path = core_path(seen.job.metadata.namespace, "pods", name, "log")
        query = {"tailLines": str(LOG_LINES), "limitBytes": str(LOG_MOST), "timestamps": "true"}
        container = seen.containers.get(name)
        if container:
            query["container"] = container
        try:
            async with self._room, asyncio.timeout(5):
                return (await self._kube.text(path, **query))[-LOG_BYTES:]
        except (ApiError, TimeoutError):
            return ""  # for a message only; the node may be the very thing that is lost


def _wrote(memory: JobMemory, answer: Json) -> None:
    """The next list of pods must show this write."""
    version = as_number((answer.get("metadata") or {}).get("resourceVersion"))
    memory.version = max(memory.version, version) if memory.version and version else 0


def _as_seen(manifest: Json, standing: Json | None) -> Json:
    """With the uid of the one that was looked at, so that no other one of its name is changed."""
    if standing is None:
        return manifest
    return {**manifest, "metadata": {**manifest["metadata"], "uid": standing["metadata"]["uid"]}}


def _altered(action: EnsureService, made: Json) -> Problem | None:
    """What somebody adds is theirs; where our own part does not stand, no rank would find the other."""
    parts = (
        ("labels", action.manifest["metadata"]["labels"], made["metadata"].get("labels") or {}),
        ("selector", action.manifest["spec"]["selector"], made["spec"].get("selector") or {}),
    )
    lost = sorted(
        f"{part}.{key}" for part, wanted, stands in parts for key, value in wanted.items() if stands.get(key) != value
    )
    if not lost:
        return None
    message = f"an admission webhook changes what is applied to the service {action.name}: {', '.join(lost)}"
    return Problem(ProblemKind.POD_REFUSED, "ServiceAltered", message)


def _foreign(seen: Seen, kind: str, standing: Json) -> Problem | None:
    """None for what is this job's; a problem for what a former job of the name has left, or what is somebody else's."""
    meta, theirs = seen.job.metadata, standing["metadata"]
    name, labels = theirs["name"], theirs.get("labels") or {}
    if names.belongs(theirs, meta.uid):
        return None
    leaves = theirs.get("deletionTimestamp") or theirs.get("ownerReferences")  # what was orphaned stays
    if leaves and labels.get(names.JOB) == meta.name:
        message = f"the {kind} {name} of a former job of this name is still being removed"
        return Problem(ProblemKind.CLUSTER, "FormerJobLeaving", message)
    message = f"a {kind} named {name} exists in {meta.namespace} and is not this job's: delete it, or rename the job"
    return Problem(ProblemKind.POD_REFUSED, f"{kind.capitalize()}NameTaken", message)
