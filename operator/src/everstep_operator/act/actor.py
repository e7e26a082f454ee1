"""A plan's actions, one after another; the first that fails ends the row, but for deletions of pods: whatever has to
wait for those is planned when they are gone. Each is safe to repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from everstep.catalog import Catalog, Owner
from everstep_operator.act.pods import Pods
from everstep_operator.act.refusals import cluster_problem
from everstep_operator.act.registers import ask_for_save, fence, keep_source, prove, resolve
from everstep_operator.act.removal import Removal, Removals
from everstep_operator.act.status import patch_job
from everstep_operator.kube import ApiError, Kube, job_path
from everstep_operator.memory import JobMemory
from everstep_operator.metrics import Metrics
from everstep_operator.observe import Seen
from everstep_operator.reconcile.observation import Problem, ProblemKind, Results
from everstep_operator.reconcile.plan import (
    Action,
    AddFinalizer,
    AskForSave,
    CreatePod,
    DeleteCheckpoints,
    DeleteJob,
    DeletePod,
    DryRunPod,
    EnsureService,
    Fence,
    FinishRemovals,
    MarkPod,
    Probe,
    ReadLogs,
    RemoveFinalizer,
    Retire,
    Sweep,
    ValidateResumePath,
)
from everstep_operator.reconcile.torchrun import unstamped
from everstep_operator.storage import JobStorage, Storages


@dataclass(slots=True)
class Chain:
    """One pass: what its plans have in common, and what their actions gave so far."""

    seen: Seen
    memory: JobMemory
    storage: JobStorage | Problem
    cluster: str
    results: Results
    fenced: Catalog | None = None
    """The document that this pass's fence wrote."""


class Actor:
    def __init__(self, kube: Kube, storages: Storages, removals: Removals, metrics: Metrics) -> None:
        self._kube = kube
        self._storages = storages
        self._removals = removals
        self._metrics = metrics
        self._pods = Pods(kube)

    async def run(self, chain: Chain, actions: Sequence[Action]) -> Problem | None:
        """Carry them out; returns what stopped them. What they gave is in `chain.results`."""
        undeleted: Problem | None = None
        for kind, group in groupby(actions, key=_family):
            row = list(group)
            try:
                problem = await self._row(chain, kind, row)
            except ApiError as error:
                problem = cluster_problem(error)
            if problem is not None and kind is DeletePod:
                undeleted = undeleted or problem
            elif problem is not None:
                return problem
        return undeleted

    async def _row(self, chain: Chain, kind: type, row: list[Action]) -> Problem | None:
        seen = chain.seen
        if kind is CreatePod:
            return await self._pods.create(
                seen, chain.memory, [action for action in row if isinstance(action, CreatePod)]
            )
        if kind is DeletePod:
            return await self._pods.delete(
                seen, chain.memory, [action for action in row if isinstance(action, DeletePod)]
            )
        if kind is Retire:
            return self._remove(chain, [action for action in row if isinstance(action, Removal)])
        for action in row:
            problem = await self._one(chain, action)
            if problem is not None:
                return problem
        return None

    async def _one(self, chain: Chain, action: Action) -> Problem | None:
        seen = chain.seen
        match action:
            case Probe() | ValidateResumePath() | Fence() | AskForSave():
                if isinstance(chain.storage, Problem):
                    return chain.storage
                return await self._register(chain, chain.storage, action)
            case DryRunPod():
                problem = await self._pods.dry_run(seen, action)
                refused = problem if problem is not None and problem.kind is ProblemKind.POD_REFUSED else None
                chain.results = replace(chain.results, dry_run=problem is None, refused=refused)
                return problem
            case EnsureService():
                return await self._pods.ensure_service(seen, chain.memory, action)
            case MarkPod():
                return await self._pods.mark(seen, chain.memory, action)
            case ReadLogs():
                read = {name: unstamped(text) for name, text in (await self._pods.logs(seen, action)).items()}
                logs = chain.results.logs | {name: text for name, (text, _) in read.items()}
                failed_at = chain.results.failed_at | {name: when for name, (_, when) in read.items() if when}
                chain.results = replace(chain.results, logs=logs, failed_at=failed_at)
            case AddFinalizer(name):
                await self._finalizers(seen, [*seen.job.metadata.finalizers, name])
            case RemoveFinalizer(name):
                await self._finalizers(seen, [each for each in seen.job.metadata.finalizers if each != name])
            case DeleteJob(uid):
                await self._kube.delete(job_path(*seen.key), {"preconditions": {"uid": uid}})
            case _:
                raise TypeError(f"no way to carry out {action!r}")
        return None

    async def _register(
        self, chain: Chain, storage: JobStorage, action: Probe | ValidateResumePath | Fence | AskForSave
    ) -> Problem | None:
        match action:
            case Probe():
                problem = await prove(storage, chain.memory)
                if problem is not None:
                    return problem
                chain.results = replace(chain.results, probed=True)
            case ValidateResumePath():
                resume = await resolve(self._storages, storage, chain.seen, action, chain.cluster)
                if isinstance(resume, Problem):
                    return resume
                chain.results = replace(chain.results, resume=resume)
            case AskForSave(attempt, value):
                self._kube.guard()
                problem = await ask_for_save(storage, attempt, value)
                if problem is not None:
                    return problem
                chain.results = replace(chain.results, asked=value)
            case Fence():
                self._kube.guard()
                catalog = await fence(storage, chain.memory, owner_of(chain), action)
                if isinstance(catalog, Problem):
                    return catalog
                chain.fenced = catalog
                await keep_source(self._storages, storage, chain.seen, catalog, chain.cluster)
                self._metrics.fences.inc()
        return None

    def _remove(self, chain: Chain, steps: Sequence[Removal]) -> Problem | None:
        if isinstance(chain.storage, Problem):
            return chain.storage
        self._removals.start(chain.seen.key, chain.storage, chain.memory, owner_of(chain), steps)
        return None

    async def _finalizers(self, seen: Seen, finalizers: list[str]) -> None:
        meta = seen.job.metadata
        patch = {"metadata": {"resourceVersion": meta.resource_version, "finalizers": finalizers}}
        await patch_job(self._kube, seen, patch)


def owner_of(chain: Chain) -> Owner:
    meta = chain.seen.job.metadata
    return Owner(cluster=chain.cluster, namespace=meta.namespace, name=meta.name, uid=meta.uid)


def _family(action: Action) -> type:
    """Neighbours of one family are carried out together."""
    return Retire if isinstance(action, Retire | FinishRemovals | Sweep | DeleteCheckpoints) else type(action)
