"""What a pass remembers of one that came to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from everstep_operator.act import StaleError
from everstep_operator.act.actor import Chain
from everstep_operator.api import TrainingJob
from everstep_operator.clock import ServerClock
from everstep_operator.health import Health
from everstep_operator.kube import ApiError
from everstep_operator.memory import JobMemory, Key, Memories
from everstep_operator.metrics import Metrics
from everstep_operator.observe import Seen
from everstep_operator.queue import Outcome
from everstep_operator.reconcile import decide
from everstep_operator.reconcile.observation import Observation, Problem, ProblemKind, Results, Stored
from everstep_operator.reconcile.plan import Action, CreatePod, DryRunPod, Fence, Probe
from everstep_operator.reconciler import LONGEST_PAUSE, Reconciler
from tests.support.observations import CLUSTER, UID, beat, committed, fenced, job, observe, pod, running
from tests.support.trainingjobs import minimal

KEY: Key = ("default", "job")


class Observer:
    """An API server that answers with `error` when the job is asked for, and registers that tell of nothing new."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.looks = 0

    async def job(self, _key: Key) -> Any:
        self.looks += 1
        raise self.error

    async def again(self, last: Observation, _memory: JobMemory) -> Observation:
        return last


def reconciler(observer: Observer, memories: Memories, metrics: Metrics | None = None) -> Reconciler:
    parts: Any = cast(Any, None)
    metrics = metrics or Metrics()
    return Reconciler(parts, cast(Any, observer), parts, parts, parts, memories, metrics, Health(leading=lambda: True))


def remembered() -> Memories:
    """Of a gang that runs, whose last whole look was a moment ago."""
    memories = Memories()
    memory = memories.of(KEY, UID)
    seen = observe(job(running()), pod(0), pod(1), catalog=committed(30), heartbeat=beat(31))
    memory.last = seen.written(decide(seen).status)
    memory.looked = float("inf")
    return memories


async def test_a_change_is_looked_at_though_the_first_look_at_it_came_to_nothing() -> None:
    memories, observer = remembered(), Observer(ApiError(500, "", "no"))
    handle = reconciler(observer, memories)
    assert isinstance(await handle(KEY), Outcome)
    assert observer.looks == 0, "nothing has changed: the registers are enough"
    memories.stir(KEY)
    for looks in (1, 2):
        with pytest.raises(ApiError):
            await handle(KEY)
        assert observer.looks == looks


async def test_what_is_stale_again_and_again_waits_longer_each_time() -> None:
    memories = remembered()
    memories.stir(KEY)
    metrics = Metrics()
    handle = reconciler(Observer(StaleError("changed")), memories, metrics)
    pauses = [(await handle(KEY)).again_after or 0.0 for _ in range(20)]
    assert pauses[:3] == [0.0, 0.0, 0.0]
    assert sorted(pauses) == pauses
    assert (pauses[3] > 0, pauses[-1]) == (True, LONGEST_PAUSE)
    counted = metrics.registry.get_sample_value("everstep_reconcile_seconds_count", {"result": "stale"})
    assert counted == 20, "a conflict is no error"


class World(Observer):
    """A job that has never run, its storage and its cluster. Notes what each decision knew of the pods beforehand."""

    def __init__(self, memories: Memories) -> None:
        super().__init__(ApiError(500, "", "no"))
        self.memories = memories
        self.clock = ServerClock()
        self.known: list[bool] = []
        self.actions: list[str] = []
        self.news_after: str | None = None
        self.lags: list[bool] = []
        self.body = {**minimal(), "metadata": {**minimal()["metadata"], "uid": UID, "resourceVersion": "1"}}

    async def job(self, _key: Key) -> Any:
        return Seen(self.body, TrainingJob.parse(self.body))

    async def storage(self, _job: TrainingJob) -> Any:
        return None

    async def registers(self, *_: Any) -> Stored:
        return Stored()

    async def cluster(self) -> str:
        return CLUSTER

    async def observe(self, seen: Seen, _memory: JobMemory, stored: Stored, results: Results, pods: Any) -> Observation:
        self.known.append(pods is not None)
        catalog = stored.catalog
        return observe(seen.job, *(pods or ()), catalog=catalog, services=(), stored=stored, results=results)

    async def patch(self, _path: str, body: dict[str, Any]) -> Any:
        self.body = {**self.body, "status": {**self.body.get("status", {}), **body["status"]}}
        return self.body

    async def emit(self, *_: Any, **__: Any) -> None:
        self.lags.append(self.memories.of(KEY, UID).status != TrainingJob.parse(self.body).status)

    async def run(self, chain: Chain, actions: Sequence[Action]) -> Problem | None:
        for action in actions:
            self.actions.append(type(action).__name__)
            if self.actions[-1] == self.news_after:
                self.memories.stir(KEY)
            match action:
                case Probe():
                    chain.results = replace(chain.results, probed=True)
                case DryRunPod():
                    chain.results = replace(chain.results, dry_run=True)
                case Fence():
                    chain.fenced = fenced()
                case CreatePod():
                    raise StaleError("that is all")
        return None


async def started(news_after: str | None = None) -> World:
    memories = Memories()
    world: Any = World(memories)
    world.news_after = news_after
    parts: Any = cast(Any, None)
    health = Health(leading=lambda: True)
    await Reconciler(world, world, world, world, parts, memories, Metrics(), health)(KEY)
    assert world.actions[:3] == ["Probe", "DryRunPod", "Fence"]
    assert world.actions[-1] == "CreatePod"
    return cast(World, world)


class Refusing(World):
    """Its cluster refuses what is asked of it, as long as `refuses`."""

    refuses = True

    async def run(self, chain: Chain, actions: Sequence[Action]) -> Problem | None:
        refused = Problem(ProblemKind.POD_REFUSED, "QuotaExceeded", "no")
        return refused if self.refuses and actions else None

    async def registers(self, *_: Any) -> Stored:
        return Stored(problem=None if self.refuses else Problem(ProblemKind.UNAVAILABLE, "StorageUnavailable", "no"))


async def test_since_when_the_cluster_refuses_is_known_until_a_pass_meets_no_refusal() -> None:
    memories, now = Memories(), [100.0]
    world: Any = Refusing(memories)
    parts: Any = cast(Any, None)
    health = Health(leading=lambda: True)
    handle = Reconciler(world, world, world, world, parts, memories, Metrics(), health, lambda: now[0])
    for now[0] in (100.0, 130.0):
        memories.stir(KEY)
        await handle(KEY)
        assert memories.of(KEY, UID).hindered_at == 100.0
    world.refuses = False
    memories.stir(KEY)
    await handle(KEY)
    assert memories.of(KEY, UID).hindered_at is None


class Telling(Refusing):
    """It begins attempts, and refuses their pods."""

    async def run(self, chain: Chain, actions: Sequence[Action]) -> Problem | None:
        refused = await super().run(chain, [action for action in actions if isinstance(action, CreatePod)])
        return refused or await World.run(self, chain, [each for each in actions if not isinstance(each, CreatePod)])

    async def registers(self, *_: Any) -> Stored:
        return Stored()

    async def emit(self, *_: Any, anew: bool = False, **__: Any) -> None:
        if anew:
            self.actions.append("tell")


async def test_a_new_holder_of_the_lease_acts_before_it_tells_what_the_last_one_did() -> None:
    memories = Memories()
    world: Any = Telling(memories)
    parts: Any = cast(Any, None)
    await Reconciler(world, world, world, world, parts, memories, Metrics(), Health(leading=lambda: True))(KEY)
    assert world.actions == ["Probe", "DryRunPod", "Fence", "tell"]


async def test_pods_are_not_listed_again_after_what_leaves_them_alone() -> None:
    """They are at the beginning and after the fence, which other operators' pods may have preceded."""
    assert (await started()).known == [False, True, False]


async def test_what_a_watch_tells_in_the_middle_of_a_pass_is_looked_at() -> None:
    assert (await started(news_after="DryRunPod")).known == [False, False, False]


async def test_what_the_metrics_tell_does_not_wait_for_events() -> None:
    lags = (await started()).lags
    assert lags
    assert not any(lags)
