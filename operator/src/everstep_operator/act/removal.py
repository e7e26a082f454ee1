"""Removal of checkpoints beside a job's life: in a task and in threads of its own, so that no recovery waits for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from everstep.catalog import JobCatalog, Owner
from everstep.errors import CatalogMissingError, OwnerConflictError
from everstep_operator.memory import JobMemory, Key
from everstep_operator.metrics import Metrics
from everstep_operator.reconcile.plan import DeleteCheckpoints, FinishRemovals, Retire, Sweep
from everstep_operator.storage import JobStorage, classify

log = logging.getLogger(__name__)

Removal = Retire | FinishRemovals | Sweep | DeleteCheckpoints

SECONDS = 600.0
"""Limit of one step of a removal."""
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 300.0


class Removals:
    """At most one a job at a time. `guard` raises where this process may not write; `wake` says that one has ended."""

    def __init__(
        self,
        guard: Callable[[], None],
        wake: Callable[[Key], None],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._guard = guard
        self._wake = wake
        self._metrics = metrics
        self._clock = clock

    def start(self, key: Key, storage: JobStorage, memory: JobMemory, owner: Owner, steps: Sequence[Removal]) -> None:
        """Begin, unless one is under way or the last one failed a moment ago: the next pass then plans it again."""
        under_way = memory.removal is not None and not memory.removal.done()
        if under_way or self._clock() < memory.removal_not_before:
            return
        work = self._run(key, storage, memory, owner, steps)
        memory.removal = asyncio.create_task(work, name=f"removal {key[0]}/{key[1]}")

    async def _run(
        self, key: Key, storage: JobStorage, memory: JobMemory, owner: Owner, steps: Sequence[Removal]
    ) -> None:
        try:
            for step in steps:
                self._guard()
                await self._step(storage, memory, owner, step)
        except Exception as error:
            memory.removal_failures += 1
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(memory.removal_failures - 1, 10))
            memory.removal_not_before = self._clock() + pause
            log.warning("checkpoints could not be removed: %s; trying again after %.0f s", error, pause)
            memory.removal_problem = classify(error)
            if memory.removal_problem is None:
                log.exception("a removal failed for an unknown reason")
        else:
            memory.removal_failures, memory.removal_problem = 0, None
        self._wake(key)

    async def _step(self, storage: JobStorage, memory: JobMemory, owner: Owner, step: Removal) -> None:
        match step:
            case Retire(policy):
                await storage.call(lambda: storage.catalog.retire(policy, owner), SECONDS, "slow")
            case FinishRemovals(most):
                removed = await storage.call(lambda: storage.catalog.finish_removals(most), SECONDS, "slow")
                self._metrics.removed.inc(removed)
                if removed:
                    log.info("removed %d checkpoints", removed)
            case Sweep():
                swept = await storage.call(storage.catalog.sweep, SECONDS, "slow")
                memory.swept_at = self._clock()
                if swept:
                    log.info("swept %d saves that were never committed: %s", len(swept), ", ".join(swept))
            case DeleteCheckpoints():
                await storage.call(lambda: delete_everything(storage.catalog, owner), SECONDS, "slow")
                memory.deleted = True


def delete_everything(job: JobCatalog, owner: Owner) -> None:
    """A root that is not this very job's (another owner's, or without a register) is left alone."""
    try:
        job.delete_everything(owner)
    except (CatalogMissingError, OwnerConflictError) as error:
        log.warning("nothing is deleted from %s: %s", job.store.uri, error)
