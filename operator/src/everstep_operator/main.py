"""The operator's process: watches, workers, Lease and HTTP server side by side; the end of any of them ends it all.

A process that ends is restarted and begins with a clean view of the world; one that limps on with half of its parts
would be trusted and do nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, NoReturn

import kopf

from everstep_operator import handlers, health, logs
from everstep_operator.act import Actor, Events
from everstep_operator.act.removal import Removals
from everstep_operator.api import PLURAL
from everstep_operator.config.profiles import ProfilesFile
from everstep_operator.config.settings import Settings, SettingsError, read
from everstep_operator.discovery import until_listed
from everstep_operator.job_metrics import JobSeries
from everstep_operator.kube import JOBS, ApiError, Kube, NoClusterError
from everstep_operator.lease import Elector, Leadership, Timing
from everstep_operator.leases import KubeLease
from everstep_operator.memory import Key, Memories
from everstep_operator.metrics import Metrics
from everstep_operator.observe import Observer, remember
from everstep_operator.queue import Pauses, Schedule, WorkQueue
from everstep_operator.reconciler import Reconciler
from everstep_operator.storage import Lanes, Storages

log = logging.getLogger(__name__)

USER_AGENT = "everstep-operator"
POLLS_PER_SECOND = 20.0
"""Looks at running jobs that one process makes; with more jobs each is looked at less often, within the settings."""
SPREAD = 30.0
"""Seconds over which the jobs of a resync are spread."""
RETRY, RETRY_SYNCED = 2.0, 15.0
"""Seconds after a list that failed: while no job is known yet, and later."""
DRAIN = 5.0
"""Seconds that passes under way get to end after SIGTERM."""


class EndedError(Exception):
    """A part of the process that runs for ever has ended."""


KNOWN = (EndedError, NoClusterError, health.CannotListenError)
"""Ends that their message explains."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    try:
        settings = read(sys.argv[1:] if arguments is None else arguments)
    except SettingsError as error:
        for line in str(error).splitlines():
            print(f"everstep-operator: {line}", file=sys.stderr)
        raise SystemExit(2) from error
    logs.configure(settings.log_format, settings.log_level)
    _leave(asyncio.run(run(settings)))


def _leave(code: int) -> NoReturn:
    """End at once: the interpreter would wait for threads that storage keeps, for minutes where a removal is under way,
    and nobody replaces a process that acts no more and is still there."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


async def run(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT (0), or until a part fails (1)."""
    leadership = Leadership()
    lanes = Lanes(max(2, settings.store_threads // 2))
    limit = settings.request_timeout_seconds
    try:
        async with await Kube.connect(settings.kubeconfig, user_agent=USER_AGENT, limit=limit) as kube:
            await Operator(settings, kube, leadership, lanes).run()
    except Exception as failure:
        for error in _leaves(failure):
            log.error("ending: %s", error, exc_info=None if isinstance(error, KNOWN) else error)
        return 1
    finally:
        lanes.close()
    return 0


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


class Operator:
    """The parts of one process, put together."""

    def __init__(self, settings: Settings, kube: Kube, leadership: Leadership, lanes: Lanes) -> None:
        self._settings = settings
        self._kube = kube
        self._leadership = leadership
        self._metrics = metrics = Metrics()
        kube.observe = metrics.asked_kubernetes
        self._drained = asyncio.Event()
        self._health = health.Health(leading=lambda: leadership.held)
        self._memories = Memories()
        pauses = Pauses(resync=settings.resync_seconds)
        self._queue: WorkQueue[Key] = WorkQueue(Schedule(pauses), concurrency=settings.concurrency)
        self._queue.on_error = self._report
        self._queue.on_taken = metrics.waited.observe
        metrics.queue.set_function(lambda: self._queue.ready() if leadership.held else 0)
        metrics.keys.set_function(lambda: len(self._queue.schedule))
        metrics.registry.register(JobSeries(self._memories))
        metrics.jobs.set_function(lambda: len(self._memories))
        metrics.leader.set_function(lambda: float(leadership.held))
        guarded = kube.guarded(leadership.check)
        storages = Storages(
            ProfilesFile(settings.profiles_file),
            lanes,
            settings.store_timeout_seconds,
            metrics.asked_storage,
            kube.clock.now,
        )
        observer = Observer(
            guarded, storages, poll_seconds=self._poll_seconds, progress_seconds=settings.progress_seconds
        )
        removals = Removals(leadership.check, self._queue.add, metrics)
        self._reconcile = Reconciler(
            guarded,
            observer,
            Actor(guarded, storages, removals, metrics),
            Events(guarded, settings.identity),
            storages,
            self._memories,
            metrics,
            self._health,
        )

    async def run(self) -> None:
        """Returns after SIGTERM; raises an ExceptionGroup where a part has failed or ended."""
        settings = self._settings
        stop = asyncio.Event()
        watching = asyncio.Event()
        timing = Timing(settings.lease_seconds, settings.lease_renew_seconds)
        lease = KubeLease(self._kube, settings.lease_namespace, settings.lease_name)
        elector = Elector(lease, settings.identity, self._leadership, timing)
        async with asyncio.TaskGroup() as group:
            # kopf's end cancels every task that began after it: so it begins last.
            parts = [
                group.create_task(_forever(part(), name), name=name)
                for name, part in (
                    ("the workers", self._work),
                    ("the resync", self._resync),
                    ("the Lease", elector.run),  # released when nothing acts any more
                    ("HTTP", self._serve),
                    ("the watches", lambda: self._watch(watching)),
                )
            ]
            group.create_task(_on_signals(watching, stop))
            await stop.wait()
            log.info("stopping")
            await self._drain()
            for task in parts:  # one after the other, since kopf's end cancels whatever is younger than itself
                task.cancel()
                await asyncio.wait([task], timeout=DRAIN)

    async def _drain(self) -> None:
        """Let passes under way come to their end, so that the next holder of the Lease finds whole steps."""
        self._queue.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN if self._health.passes else 0):
                await self._drained.wait()

    async def _work(self) -> None:
        await self._queue.run(self._reconcile, self._leadership.wait)
        self._drained.set()
        await asyncio.Event().wait()  # closed on purpose: the process ends by itself

    async def _watch(self, watching: asyncio.Event) -> None:
        await until_listed(self._kube)
        namespaces = self._settings.watch_namespaces
        scope: dict[str, Any] = {"namespaces": namespaces} if namespaces else {"clusterwide": True}
        await kopf.operator(
            registry=handlers.registry(self._look, self._part, self._kube.api.configuration),
            settings=handlers.settings(self._settings.request_timeout_seconds),
            standalone=True,
            ready_flag=watching,
            **scope,
        )

    def _look(self, key: Key, resource_version: str | None, of_the_job: bool) -> None:
        if not of_the_job or not self._memories.is_echo(key, resource_version):
            self._memories.stir(key)
            if not of_the_job:
                self._memories.saw(key, resource_version)
            self._queue.add(key)

    def _part(self, key: Key, pod: Mapping[str, Any]) -> None:
        memory = self._memories.known(key)
        if memory is not None:
            remember(memory, key[1], pod)

    async def _serve(self) -> None:
        settings = self._settings
        await health.serve(
            self._health,
            self._metrics,
            settings.http_host,
            settings.http_port,
            lambda port: log.info("serving probes and metrics on port %d", port),
        )

    async def _resync(self) -> None:
        """Look at all jobs at the beginning and then now and again, whatever the watches told or missed."""
        spread = 0.0
        while True:
            try:
                began = self._queue.clock()
                listed = await self._list()
                if not self._leadership.held:  # the holder finds out in a pass that a job is gone
                    for key in self._queue.forget_absent(listed, began):
                        self._memories.forget(key)
                for key in listed:
                    self._queue.add(key, random.uniform(0, spread))
                self._health.synced = True
                spread, pause = SPREAD, self._settings.resync_seconds
            except ApiError as error:
                if not self._health.synced and error.not_found:
                    raise EndedError("the cluster has no TrainingJobs: install crds/ of everstep first") from error
                log.warning("the jobs could not be listed: %s", error)
                pause = min(RETRY_SYNCED if self._health.synced else RETRY, self._settings.resync_seconds)
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))

    async def _list(self) -> list[Key]:
        spaces = self._settings.watch_namespaces
        paths = [f"{JOBS}/namespaces/{space}/{PLURAL}" for space in spaces] or [f"{JOBS}/{PLURAL}"]
        found = [job for path in paths for job in await self._kube.list_all(path)]
        return [(job["metadata"]["namespace"], job["metadata"]["name"]) for job in found]

    def _report(self, key: Key, error: Exception, pause: float) -> None:
        memory = self._memories.known(key)
        with logs.about(*key, memory.status.attempt if memory and memory.status else 0):
            known = isinstance(error, ApiError)
            log.warning("looking again after %.1f s: %s", pause, error, exc_info=None if known else error)

    def _poll_seconds(self) -> float:
        settings = self._settings
        busy = len(self._memories) / POLLS_PER_SECOND
        return min(settings.poll_max_seconds, max(settings.poll_seconds, busy))


async def _forever(part: Coroutine[Any, Any, None], name: str) -> None:
    await part
    raise EndedError(f"{name} ended, and the operator with it")


async def _on_signals(watching: asyncio.Event, stop: asyncio.Event) -> None:
    """Our own handlers, once kopf has installed its: it would cancel all tasks in no order."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    await watching.wait()
    for number in numbers:
        loop.add_signal_handler(number, stop.set)


if __name__ == "__main__":
    main()
