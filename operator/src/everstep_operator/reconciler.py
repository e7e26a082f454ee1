"""One pass over one job: observe, decide, act; as often as the decision asks for within the pass."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from everstep_operator import logs
from everstep_operator.act import Actor, Events, StaleError, unreadable, write_status
from everstep_operator.act.actor import Chain
from everstep_operator.act.status import merge_patch
from everstep_operator.api import InvalidJobError, TrainingJobStatus
from everstep_operator.health import Health
from everstep_operator.kube import Kube
from everstep_operator.memory import JobMemory, Key, Memories
from everstep_operator.metrics import Metrics
from everstep_operator.observe import Observer, Seen
from everstep_operator.observe.registers import stored as stored_view
from everstep_operator.queue import Outcome
from everstep_operator.reconcile.decide import decide
from everstep_operator.reconcile.events import untold
from everstep_operator.reconcile.observation import PodView, Results
from everstep_operator.reconcile.plan import LEAVES_PODS, Plan
from everstep_operator.reconcile.storage import is_storage
from everstep_operator.storage import Storages

log = logging.getLogger(__name__)

WHOLE_LOOK = 60.0
"""Seconds for which the watches are trusted to tell of every change."""
LONGEST_CHAIN = 24
"""Decisions in one pass; more of them is a bug, and the queue's pace then bounds the harm."""
FREE_LOOKS = 3
"""Looks in a row that find the job changed under them before the next one waits."""
PAUSE, LONGEST_PAUSE = 0.05, 5.0
"""Seconds: twice as long with each such look in a row, up to the longest."""
AFTER_PROBLEM = 5.0
"""Seconds to the next look where actions failed and no decision said when."""


class Reconciler:
    def __init__(
        self,
        kube: Kube,
        observer: Observer,
        actor: Actor,
        events: Events,
        storages: Storages,
        memories: Memories,
        metrics: Metrics,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube = kube
        self._observer = observer
        self._actor = actor
        self._events = events
        self._storages = storages
        self._memories = memories
        self._metrics = metrics
        self._health = health
        self._clock = clock

    async def __call__(self, key: Key) -> Outcome:
        """The queue's handler."""
        began = self._health.passes[key] = self._clock()
        result = "error"
        try:
            with logs.about(*key):
                outcome = await self._pass(key)
                memory = self._memories.known(key)
                if memory is not None:
                    memory.stale = 0
            result = "ok"
        except StaleError as error:
            log.debug("observing anew: %s", error)
            result = "stale"
            return Outcome(again_after=self._pause_when_stale(key))
        finally:
            self._health.passes.pop(key, None)
            self._metrics.passes.labels(result).observe(self._clock() - began)
        return outcome

    def _pause_when_stale(self, key: Key) -> float:
        """Seconds. At first none; what is stale again and again, such as a storage that answers from a cache, would
        else keep a worker busy for nobody's good."""
        memory = self._memories.known(key)
        if memory is None:
            return 0.0
        memory.stale += 1
        return 0.0 if memory.stale <= FREE_LOOKS else min(LONGEST_PAUSE, PAUSE * 2.0 ** min(memory.stale, 16))

    async def _pass(self, key: Key) -> Outcome:
        memory = self._memories.known(key)
        if memory is not None:
            outcome = await self._glance(key, memory)
            if outcome is not None:
                return outcome
        self._memories.settle(key)
        if memory is not None:
            memory.last = None  # where this look comes to nothing, no glance is to make do without it
        try:
            seen = await self._observer.job(key)
        except InvalidJobError as error:
            await unreadable.tell(self._kube, self._events, error)
            return Outcome()
        if seen is None:
            gone = self._memories.forget(key)
            if gone is not None:
                self._storages.forget(gone.uid)
            return Outcome(gone=True)
        if memory is not None and memory.uid != seen.job.metadata.uid:
            self._storages.forget(memory.uid)  # deleted and applied anew between two looks
        logs.at_attempt(seen.job.status.attempt)
        if not seen.job.is_ours:
            return Outcome()
        found = seen.job.status
        outcome = await self._chain(seen)
        await self._catch_up(seen, found)
        return outcome

    async def _catch_up(self, seen: Seen, found: TrainingJobStatus) -> None:
        """Tell what the process that wrote this status may have had no time to tell; no recovery waits for that."""
        memory = self._memories.of(seen.key, seen.job.metadata.uid)
        if not memory.told:
            past = untold(found, self._kube.clock.now())
            await self._events.emit(seen.job.metadata, found.attempt, past, anew=True)
            memory.told = True

    async def _glance(self, key: Key, memory: JobMemory) -> Outcome | None:
        """Look at the registers alone, where the watches told of no change and the last whole look is not old.

        None where there is anything to do about what is seen: then a whole look decides.
        """
        last = memory.last
        if last is None or self._memories.is_stirred(key) or self._clock() - memory.looked > WHOLE_LOOK:
            return None
        logs.at_attempt(last.job.status.attempt)
        observation = await self._observer.again(last, memory)
        if observation is None:
            return None
        self._metrics.looked(memory)
        plan = decide(observation)
        if plan.actions or plan.again or plan.events or merge_patch(last.job.status.dump(), plan.status.dump()):
            return None
        return None if self._memories.is_stirred(key) else Outcome(plan.requeue_after)

    async def _chain(self, seen: Seen) -> Outcome:
        memory = self._memories.of(seen.key, seen.job.metadata.uid)
        memory.last, memory.looked = None, self._clock()
        memory.status = seen.job.status
        storage = await self._observer.storage(seen.job)
        stored = await self._observer.registers(seen.job, memory, storage)
        if stored.problem is None:
            self._metrics.looked(memory)
        known = Results(
            probed=memory.probed is not None and memory.probed == getattr(storage, "root", None),
            checkpoints_deleted=memory.deleted,
            deletion=memory.removal_problem,
        )
        chain = Chain(seen, memory, storage, await self._observer.cluster(), known)
        told = hindered = False
        pods: tuple[PodView, ...] | None = None
        for _ in range(LONGEST_CHAIN):
            if chain.fenced is not None:
                stored = stored_view(memory, self._clock(), fenced=chain.fenced)
            observation = await self._observer.observe(seen, memory, stored, chain.results, pods)
            plan = decide(observation)
            log.debug("%s, then %s", _names(plan), "again" if plan.again else f"in {plan.requeue_after} s")
            await self._record(seen, memory, plan)
            problem = await self._actor.run(chain, plan.actions)
            if problem is not None:
                log.info("%s: %s", problem.reason, problem.message)
                memory.version = 0  # a write may have come through although its answer did not
                if not is_storage(problem):
                    hindered, memory.hindered_at = True, memory.hindered_at or self._clock()
            chain.results = replace(chain.results, problem=problem)
            quiet = problem is None and not self._memories.is_stirred(seen.key)
            seen.service_known &= quiet
            pods = observation.pods if quiet and _leaves_pods(plan) else None
            if problem is not None and told:
                return Outcome(AFTER_PROBLEM if plan.requeue_after is None else plan.requeue_after)
            told = problem is not None
            if not plan.again and not told:
                memory.hindered_at = memory.hindered_at if hindered else None
                memory.last = None if plan.actions else replace(observation, job=seen.job)
                return Outcome(plan.requeue_after)
        log.error("a pass came to no end after %d decisions", LONGEST_CHAIN)
        return Outcome(AFTER_PROBLEM)

    async def _record(self, seen: Seen, memory: JobMemory, plan: Plan) -> None:
        before = seen.job.status
        written = await write_status(self._kube, seen, plan.status)
        # Before the events: metrics must not lag behind a status that can be read already.
        memory.written, memory.status = seen.job.metadata.resource_version, seen.job.status
        logs.at_attempt(plan.status.attempt)
        if not written:
            return
        self._metrics.wrote(before, plan.status)
        await self._events.emit(seen.job.metadata, seen.job.status.attempt, plan.events)


def _leaves_pods(plan: Plan) -> bool:
    return all(isinstance(action, LEAVES_PODS) for action in plan.actions)


def _names(plan: Plan) -> str:
    return ", ".join(type(action).__name__ for action in plan.actions) or "nothing to do"
