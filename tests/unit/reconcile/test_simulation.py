"""decide() against a small world, with the operator killed between any two of its writes.

The world is a catalog (the real transitions), a kubelet, nodes and an API server, all as plain data. Whatever happens
and wherever the operator is killed: never two gangs, no attempt lost or repeated, no object leaked, and in a world that
has calmed down the job arrives at rest and nothing more is written.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from everstep.catalog import Catalog, Entry, Location, resume_point
from everstep.catalog import transitions as t
from everstep.catalog.retention import expendable
from everstep.errors import FencedError, InvalidOperationError
from everstep_operator.api import Phase, TrainingJobStatus
from everstep_operator.build import fingerprint, names
from everstep_operator.reconcile import decide, plan
from everstep_operator.reconcile.history import PLANNED
from everstep_operator.reconcile.observation import (
    ContainerView,
    NodeView,
    Observation,
    PodView,
    Problem,
    ProblemKind,
    Results,
    ServiceView,
    Stored,
)
from everstep_operator.reconcile.teardown import GRACE
from tests.support.observations import CLUSTER, NOW, OWNER, UID, job

NODES = 2
HOSTS = ("node-a", "node-b")


class Killed(Exception):
    """The operator's process ended."""


@dataclass
class Pod:
    name: str
    uid: str
    attempt: int
    index: int
    node: str
    resume: str
    annotations: dict[str, str]
    phase: str = "Pending"
    code: int | None = None
    deleting: bool = False
    grace: int | None = None

    @property
    def alive(self) -> bool:
        return self.phase in ("Pending", "Running")

    def view(self) -> PodView:
        container = ContainerView(
            running_since=NOW if self.phase == "Running" else None,
            exit_code=self.code,
            finished=NOW if self.code else None,
        )
        return PodView(
            name=self.name,
            uid=self.uid,
            attempt=self.attempt,
            index=self.index,
            phase=self.phase,  # type: ignore[arg-type]
            deleting=self.deleting,
            deletion_grace=self.grace if self.deleting else None,
            node=self.node,
            container=container,
            annotations=self.annotations,
        )


@dataclass
class World:
    """Everything but the operator's process."""

    spec: dict[str, Any]
    now: float = 0.0
    status: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    catalog: Catalog | None = None
    lost: Catalog | None = None
    """A catalog that somebody removed by hand."""
    saved: bool = False
    tampered: bool = False
    pods: dict[str, Pod] = field(default_factory=dict)
    service: int | None = None
    down: set[str] = field(default_factory=set)
    storage_up: bool = True
    quota: int = 99
    fences: dict[int, Catalog] = field(default_factory=dict)
    """The document that each attempt's fence wrote."""
    created: dict[int, set[int]] = field(default_factory=dict)
    claims: dict[int, int] = field(default_factory=dict)
    zombies: list[str] = field(default_factory=list)
    writes: int = 0
    failures: int = 0
    serial: itertools.count[int] = field(default_factory=itertools.count)

    def observe(self, results: Results) -> Observation:
        problem = None
        if not self.storage_up:
            problem = Problem(ProblemKind.UNAVAILABLE, "StorageUnavailable", "no answer")
        return Observation(
            job=job(self.status, self.metadata, **self.spec),
            now=NOW + timedelta(seconds=self.now),
            cluster=CLUSTER,
            pods=tuple(pod.view() for pod in self.pods.values()),
            services=(ServiceView("s", "s", "10.0.0.7", self.service),) if self.service is not None else (),
            nodes=tuple(NodeView(name, ready=name not in self.down) for name in HOSTS),
            stored=Stored(
                catalog=self.catalog if self.storage_up else None,
                heartbeat=None,
                problem=problem,
                swept_age=1.0,
            ),
            results=results,
        )

    def operate(self, kill_before: int | None = None) -> plan.Plan:
        """One pass; the process is killed before its `kill_before`-th write, if it comes to that."""
        budget = itertools.count() if kill_before is None else iter(range(kill_before))
        results, told = Results(), False
        for _ in range(12):
            decided = decide(self.observe(results))
            assert decided == decide(self.observe(results)), "the same observation gave another plan"
            self._write_status(decided.status, budget)
            problem = None
            for action in decided.actions:
                problem, results = self._act(action, results, budget)
                if problem is not None:
                    break
            results = replace(results, problem=problem)
            if problem is not None and told:
                return decided
            told = problem is not None
            if not decided.again and not told:
                return decided
        raise AssertionError("a pass that does not end")

    def _write(self, budget: Any) -> None:
        if next(budget, None) is None:
            raise Killed
        self.writes += 1

    def _write_status(self, status: TrainingJobStatus, budget: Any) -> None:
        new = status.dump()
        old = TrainingJobStatus.model_validate(self.status)
        if new == old.dump():
            return
        self._write(budget)
        self._check_status(old, status)
        self.status = new

    def _check_status(self, old: TrainingJobStatus, new: TrainingJobStatus) -> None:
        assert new.attempt >= old.attempt, "the attempt went back"
        if old.phase is not None and old.phase.finished:
            assert new.phase is old.phase, "an end that is not for good"
        attempts = [entry.attempt for entry in new.history]
        assert attempts == sorted(set(attempts)), "an attempt ended twice"
        known = {entry.attempt for entry in old.history}
        fresh = [entry for entry in new.history if entry.attempt not in known]
        assert len(fresh) <= 1
        failed = [entry for entry in fresh if entry.reason not in PLANNED]
        self.failures += len(failed)
        total = new.restarts.total if new.restarts else 0
        assert total <= self.failures
        assert total == self.failures or new.phase is Phase.FAILED, "a failure was not counted once"

    def _act(self, action: plan.Action, results: Results, budget: Any) -> tuple[Problem | None, Results]:
        down = Problem(ProblemKind.UNAVAILABLE, "StorageUnavailable", "no answer")
        match action:
            case plan.Probe():
                return (None, replace(results, probed=True)) if self.storage_up else (down, results)
            case plan.DryRunPod():
                if self.quota:
                    return None, replace(results, dry_run=True)
                return self._refused(), replace(results, refused=self._refused())
            case plan.Fence():
                if not self.storage_up:
                    return down, results
                return self._fence(action, budget), results
            case plan.EnsureService(_, manifest):
                self._write(budget)
                self.service = int(manifest["spec"]["selector"][names.ATTEMPT])
            case plan.CreatePod(name, manifest):
                return self._create(name, manifest, budget), results
            case plan.DeletePod(name, uid, grace):
                self._write(budget)
                pod = self.pods.get(name)
                if pod is not None and pod.uid == uid:
                    pod.deleting, pod.grace = True, 30 if grace is None else grace
                    if not pod.alive:
                        del self.pods[name]
            case plan.ReadLogs(pods):
                return None, replace(results, logs=dict.fromkeys(pods, ""))
            case plan.Retire(policy):
                assert self.catalog is not None
                self._write(budget)
                leaving = {entry.location for entry in expendable(self.catalog, policy, NOW)}
                self.catalog = t.retire(self.catalog, leaving, NOW)
            case plan.FinishRemovals():
                assert self.catalog is not None
                self._write(budget)
                self.catalog = t.forget(self.catalog, {removal.location for removal in self.catalog.removing})
            case _:
                raise AssertionError(f"{action} was not expected")
        return None, results

    def _refused(self) -> Problem:
        return Problem(ProblemKind.POD_REFUSED, "QuotaExceeded", "exceeded quota")

    def _fence(self, action: plan.Fence, budget: Any) -> Problem | None:
        if self.catalog is None and (action.expect_existing or self.saved):
            return Problem(ProblemKind.CATALOG_MISSING, "CatalogMissing", "gone")
        before = self.catalog
        if before is not None and before.owner == OWNER:
            ended = {entry["attempt"] for entry in self.status.get("history", [])}
            assert before.attempt in ended, f"attempt {before.attempt} was fenced away before it had ended"
        self._write(budget)
        fenced = t.fence(before or Catalog(), OWNER, f"f{next(self.serial)}", action.at_least, action.resume)
        fenced = fenced.model_copy(update={"generation": fenced.generation + 1})
        assert fenced.attempt not in self.fences or self.tampered, "an attempt's number was given twice"
        if before is not None and before.claim is not None:
            self.zombies.append(before.claim.id)
        self.catalog = self.fences[fenced.attempt] = fenced
        return None

    def _create(self, name: str, manifest: dict[str, Any], budget: Any) -> Problem | None:
        labels, annotations = manifest["metadata"]["labels"], manifest["metadata"]["annotations"]
        attempt, index = int(labels[names.ATTEMPT]), int(labels[names.INDEX])
        if sum(pod.alive for pod in self.pods.values()) >= self.quota:
            return self._refused()
        if name in self.pods:
            return None
        others = [pod for pod in self.pods.values() if pod.attempt != attempt and pod.alive]
        assert all(pod.deleting and pod.node in self.down for pod in others), "a second gang"
        point = resume_point(self.fences[attempt])
        expected = f"s3://bucket/prefix/default/job/{point.location}" if point else ""
        environment = {v["name"]: v.get("value") for v in manifest["spec"]["containers"][0]["env"]}
        assert environment["EVERSTEP_RESUME_PATH"] == expected == annotations[names.RESUME_PATH]
        assert environment["EVERSTEP_ATTEMPT"] == str(attempt)
        assert self.service == attempt
        assert attempt not in {entry["attempt"] for entry in self.status.get("history", [])}, "an attempt was repeated"
        assert attempt > self.status.get("attempt", 0), "a pod of a recorded gang was replaced"
        self._write(budget)
        host = HOSTS[index] if HOSTS[index] not in self.down else HOSTS[1 - index]
        self.pods[name] = Pod(name, f"p{next(self.serial)}", attempt, index, host, expected, dict(annotations))
        self.created.setdefault(attempt, set()).add(index)
        return None

    # what the cluster and the workers do

    def gang(self) -> list[Pod]:
        """The pods of a gang that runs in whole, else nothing."""
        if self.catalog is None:
            return []
        pods = [pod for pod in self.pods.values() if pod.attempt == self.catalog.attempt and pod.phase == "Running"]
        return pods if len(pods) == NODES else []

    def start(self) -> None:
        for pod in self.pods.values():
            if pod.phase == "Pending" and pod.node not in self.down and not pod.deleting:
                pod.phase = "Running"

    def reap(self) -> None:
        for name, pod in list(self.pods.items()):
            if pod.deleting and pod.node not in self.down:
                del self.pods[name]

    def claim(self) -> None:
        gang = self.gang()
        if self.catalog is None or not gang:
            return
        attempt = gang[0].attempt
        if self.catalog.claim is not None:
            self.zombies.append(self.catalog.claim.id)
        self.catalog = t.claim(self.catalog, f"c{next(self.serial)}", NOW, attempt, UID)
        self.claims[attempt] = self.claims.get(attempt, 0) + 1

    def commit(self, claim: str, step: int) -> None:
        assert self.catalog is not None
        epoch = self.catalog.epoch
        location = Location(step, epoch, f"{next(self.serial):012x}")
        entry = Entry(
            seq=0,
            step=step,
            epoch=epoch,
            attempt=self.catalog.attempt,
            location=str(location),
            digest="d",
            bytes=1,
            committed=NOW,
        )
        self.catalog = t.commit(self.catalog, claim, entry)
        self.saved = True

    def heal(self) -> None:
        self.storage_up, self.quota = True, 99
        self.down.clear()
        self.spec["suspend"] = False
        if self.catalog is None and self.lost is not None:
            self.catalog = self.lost

    def calm_down(self) -> plan.Plan:
        """Everything works again, nobody interferes: the job must come to rest."""
        self.heal()
        for _ in range(40):
            self.start()
            self.reap()
            self.now += 400.0  # longer than any back-off
            before = self.writes
            decided = self.operate()
            at_rest = decided.status.phase in (Phase.RUNNING, Phase.SUCCEEDED, Phase.FAILED)
            if at_rest and self.writes == before:
                return decided
        raise AssertionError(f"no rest: {decided.status.phase}, {decided}")


class Simulation(RuleBasedStateMachine):
    @initialize(restarts=st.sampled_from([0, 2, 50]))
    def begin(self, restarts: int) -> None:
        self.world = World({"failurePolicy__maxRestarts": restarts, "checkpoint__keepLast": 2})
        self.step = 0

    @rule()
    def operator_passes(self) -> None:
        self.world.operate()

    @rule(kill_before=st.integers(0, 9))
    def operator_is_killed(self, kill_before: int) -> None:
        try:
            self.world.operate(kill_before)
        except Killed:
            return

    @rule(kill_before=st.integers(0, 9), commits=st.integers(0, 3))
    def all_goes_well(self, kill_before: int, commits: int) -> None:
        """But for the operator. Without this, a gang that trains would be rare."""
        world = self.world
        world.heal()
        for _ in range(4):
            self.operator_is_killed(kill_before)
            world.now += 400.0
            world.operate()
            world.start()
            world.reap()
        if world.catalog is not None and world.catalog.claim is None:
            world.claim()
        for _ in range(commits):
            if world.catalog is not None and world.catalog.claim is not None:
                self.workers_commit()

    @rule(seconds=st.sampled_from([1.0, 10.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds

    @rule()
    def pods_start(self) -> None:
        self.world.start()

    @rule()
    def pods_stop(self) -> None:
        self.world.reap()

    @rule()
    def workers_claim(self) -> None:
        """The first claim of a gang, or another after a restart in place."""
        self.world.claim()

    @precondition(lambda self: self.world.catalog is not None and self.world.catalog.claim is not None)
    @rule()
    def workers_commit(self) -> None:
        world = self.world
        assert world.catalog is not None
        claim, latest = world.catalog.claim, world.catalog.latest()
        if claim is not None and world.gang() and world.storage_up:
            world.commit(claim.id, (latest.step if latest else 0) + 1)

    @precondition(lambda self: self.world.zombies and self.world.catalog is not None)
    @rule(data=st.data())
    def zombie_commits(self, data: st.DataObject) -> None:
        try:
            self.world.commit(data.draw(st.sampled_from(self.world.zombies)), 10**6)
        except (FencedError, InvalidOperationError):
            return
        raise AssertionError("a zombie has committed")

    @precondition(lambda self: self.world.pods)
    @rule(data=st.data())
    def pod_fails(self, data: st.DataObject) -> None:
        pod = self.world.pods[data.draw(st.sampled_from(sorted(self.world.pods)))]
        if pod.phase == "Running":
            pod.phase, pod.code = "Failed", 1

    @precondition(lambda self: self.world.pods)
    @rule(data=st.data())
    def pod_vanishes(self, data: st.DataObject) -> None:
        del self.world.pods[data.draw(st.sampled_from(sorted(self.world.pods)))]

    @precondition(lambda self: self.world.pods)
    @rule(data=st.data())
    def pod_is_drained(self, data: st.DataObject) -> None:
        pod = self.world.pods[data.draw(st.sampled_from(sorted(self.world.pods)))]
        if not pod.deleting:
            pod.deleting, pod.grace = True, 30

    @rule()
    def gang_succeeds(self) -> None:
        for pod in self.world.gang():
            pod.phase, pod.code = "Succeeded", 0

    @rule(node=st.sampled_from(HOSTS))
    def node_goes_down_or_up(self, node: str) -> None:
        self.world.down ^= {node}

    @rule()
    def storage_goes_down_or_up(self) -> None:
        self.world.storage_up = not self.world.storage_up

    @rule(quota=st.sampled_from([0, 1, 99]))
    def quota_changes(self, quota: int) -> None:
        self.world.quota = quota

    @rule()
    def user_suspends_or_resumes(self) -> None:
        self.world.spec["suspend"] = not self.world.spec.get("suspend", False)

    @rule(tag=st.integers(1, 3))
    def user_edits_the_template(self, tag: int) -> None:
        container = {"name": "main", "image": f"example.test/train:{tag}"}
        self.world.spec["template"] = {"spec": {"containers": [container]}}

    @rule(value=st.sampled_from(["1", "2"]))
    def user_asks_for_a_restart(self, value: str) -> None:
        self.world.metadata = {"annotations": {names.RESTART_NOW: value}}

    @rule()
    def catalog_is_removed_or_put_back(self) -> None:
        world = self.world
        world.tampered = True
        if world.catalog is not None:
            world.lost, world.catalog = world.catalog, None
        elif world.saved:
            world.catalog = world.lost

    @invariant()
    def in_place_restarts_are_counted_once(self) -> None:
        counted = (self.world.status.get("restarts") or {}).get("inPlace", 0)
        assert counted <= sum(claims - 1 for claims in self.world.claims.values())

    @invariant()
    def graces_are_kept(self) -> None:
        """A pod of a suspended gang keeps its own grace; one of a failed gang has a second."""
        history = {entry["attempt"]: entry["reason"] for entry in self.world.status.get("history", [])}
        for pod in self.world.pods.values():
            if pod.deleting and pod.grace == GRACE:
                assert history.get(pod.attempt) not in (None, *PLANNED)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        decided = self.world.calm_down()
        alive = [pod for pod in self.world.pods.values() if pod.alive]
        if decided.status.phase is Phase.RUNNING:
            assert sorted((pod.attempt, pod.index) for pod in self.world.pods.values()) == [
                (decided.status.attempt, index) for index in range(NODES)
            ]
            spec, built = job(**self.world.spec).spec, [pod.annotations for pod in self.world.pods.values()]
            assert fingerprint.differences(spec, built, "restart") == (), "an edit was not acted on"
        else:
            assert alive == []
        if not self.world.tampered:
            numbers = sorted(self.world.fences)
            assert numbers == list(range(1, len(numbers) + 1)), "an attempt was lost"
            assert numbers == [] or decided.status.attempt in (numbers[-1], numbers[-1] - 1)


TestSimulation = Simulation.TestCase
TestSimulation.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
