"""Operators, worker groups and zombies over one bad store: the real catalog code, interleaved request by request.

`Simulation` offers the moves; who chooses among them (hypothesis, a seed) is not its business. After every write the
rules of the contract are checked against the register's whole history.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import greenlet

from everstep.catalog import transitions
from everstep.catalog.documents import Catalog, Entry, Owner
from everstep.catalog.job import Claimed, JobCatalog
from everstep.catalog.keys import CATALOG, CHECKPOINTS, MANIFEST, Location
from everstep.catalog.manifest import File, Manifest, Progress
from everstep.catalog.register import Backoff, Register
from everstep.catalog.retention import Best, Retention
from everstep.catalog.store import KeyNotFound
from everstep.catalog.transitions import AUTO, Resume, ResumePoint, resume_point
from everstep.checkpoint.local.offers import Offer, choose
from everstep.errors import (
    CatalogMissingError,
    CheckpointCorruptError,
    CheckpointError,
    FencedError,
    InvalidOperationError,
    StorageError,
)
from tests.model.store import Request, SimulatedStore, World

POLICIES = (
    Retention(last=1),
    Retention(last=2, best=Best(count=1)),
    Retention(every=3, best=Best(count=1, mode="max")),
    Retention(),
)
SHARDS = ("__0_0.distcp", "__1_0.distcp")
NODE = "node"
"""All groups are on it."""


class Violation(AssertionError):
    """The contract is broken."""


@dataclass
class Actor:
    name: str
    run: greenlet.greenlet
    pending: Request | None = None


@dataclass
class Launched:
    """An attempt that an operator has fenced: what its pods are told."""

    attempt: int
    uid: str
    resume: ResumePoint | None


@dataclass
class Trained:
    """A worker group that has begun to train: from a local save, or (None) from what its claim names."""

    claim: str
    epoch: int
    uid: str
    local: str | None


@dataclass
class Simulation:
    world: World = field(default_factory=World)
    actors: list[Actor] = field(default_factory=list)
    launched: list[Launched] = field(default_factory=list)
    finished: list[Launched] = field(default_factory=list)
    dissolved: set[str] = field(default_factory=set)
    """Uids of jobs that were deleted together with their checkpoints."""
    refused: set[str] = field(default_factory=set)
    """Locations whose writer was told that they are not committed."""
    acknowledged: dict[str, Entry] = field(default_factory=dict)
    node: dict[str, str] = field(default_factory=dict)
    """What the one node's memory has: local saves, and whose claim each carries."""
    trained: list[Trained] = field(default_factory=list)
    checked: int = 0
    lost: bytes | None = None
    """The register, while somebody has deleted it."""
    incarnation: int = 1
    names: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        self.world.on_change = self.check

    def job(self) -> JobCatalog:
        register = Register(SimulatedStore(self.world), backoff=Backoff(tries=5), sleep=lambda _: None)
        return JobCatalog(register.store, register, self.world.clock)

    # moves

    def spawn(self, name: str, body: Callable[[], object]) -> None:
        def run() -> None:
            try:
                body()
            except CheckpointError:
                return

        self.names += 1
        actor = Actor(f"{name}-{self.names}", greenlet.greenlet(run))
        self.actors.append(actor)
        self._resume(actor, None)

    def advance(self, index: int, outcome: str) -> None:
        self.steps += 1
        self.world.now += 1
        actor = self.actors[index % len(self.actors)]
        self._resume(actor, outcome)

    def _resume(self, actor: Actor, outcome: str | None) -> None:
        actor.pending = actor.run.switch(outcome) if outcome is not None else actor.run.switch()
        if actor.run.dead:
            self.actors.remove(actor)

    def kill(self, index: int) -> None:
        actor = self.actors.pop(index % len(self.actors))
        actor.run.throw(greenlet.GreenletExit)

    def deliver(self, index: int) -> None:
        self.steps += 1
        self.world.deliver(index)

    def lose_register(self) -> None:
        """Somebody deletes catalog.json by hand. A create still on its way is not modelled: see the docs."""
        self.lost = self.world.objects.pop(CATALOG)
        self.world.in_flight = [r for r in self.world.in_flight if not r.is_swap]

    def restore_register(self) -> None:
        if self.lost is not None and CATALOG not in self.world.objects:
            self.world.objects[CATALOG] = self.lost
        self.lost = None

    def reincarnate(self) -> None:
        """The job is deleted and applied again under its name."""
        self.incarnation += 1

    # actors

    def owner(self) -> Owner:
        return Owner(cluster="c", namespace="ns", name="job", uid=f"uid-{self.incarnation}")

    def fence(self, fresh: bool = False) -> None:
        owner = self.owner()
        known = bool(self.acknowledged)

        def body() -> None:
            resume = Resume(fresh=True) if fresh else AUTO
            catalog = self.job().fence(owner, resume=resume, expect_existing=known)
            self.launched.append(Launched(catalog.attempt, owner.uid, resume_point(catalog)))

        self.spawn("operator", body)

    def retire(self, policy: int) -> None:
        job, owner = self.job(), self.owner()

        def body() -> None:
            job.retire(POLICIES[policy % len(POLICIES)], owner)
            job.finish_removals()

        self.spawn("retention", body)

    def prune(self, index: int) -> None:
        entries = self.world.history[-1].checkpoints if self.world.history else ()
        if entries:
            location = entries[index % len(entries)].location
            self.spawn("prune", lambda: self.job().prune([location]))

    def dissolve(self) -> None:
        """The job is deleted with all its checkpoints, and its name used again while that is still under way."""
        owner = self.owner()
        self.dissolved.add(owner.uid)
        self.spawn("deletion", lambda: self.job().delete_everything(owner))
        self.reincarnate()

    def sweep(self) -> None:
        self.spawn("sweeper", lambda: self.job().sweep())

    def pin(self, index: int, pinned: bool) -> None:
        entries = self.world.history[-1].checkpoints if self.world.history else ()
        if entries:
            location = entries[index % len(entries)].location
            self.spawn("pin", lambda: self.job().pin(location, pinned))

    def hold(self, index: int, seconds: int) -> None:
        entries = self.world.history[-1].live() if self.world.history else []
        if entries:
            location = entries[index % len(entries)].location
            until = self.world.clock() + timedelta(seconds=seconds)
            self.spawn("hold", lambda: self.job().hold(location, "fork", until))

    def work(self, index: int, saves: int, corrupt: bool = False, local: bool = True, ahead: bool = False) -> None:
        """A worker group of a launched attempt: the first, one more in place, or one that comes much too late.
        `local`: it has a local tier, and saves each step there before it commits some of them. `ahead`: it reads the
        register while its shards are under way, and commits by that."""
        told = self.launched[index % len(self.launched)]
        self.spawn(f"worker-{told.attempt}", lambda: self._work(told, saves, corrupt, local, ahead))

    def _work(self, told: Launched, saves: int, corrupt: bool, local: bool, ahead: bool) -> None:
        job = self.job()
        claimed = job.claim(told.attempt, told.uid, local=local)
        self._check_resumed(claimed.id, claimed.resume)
        point = claimed.resume
        if corrupt and point is not None:
            point = claimed.quarantine(point.location, "a block has another CRC32C")
        kept = self._resume_local(claimed, told, point) if local else None
        step = kept.step if kept else point.step if point else 0
        if point is not None and kept is None:
            self._load(claimed, point)
        if local:
            claimed.begin(None if kept is None else str(kept))
        self.trained.append(Trained(claimed.id, claimed.epoch, told.uid, None if kept is None else str(kept)))
        for number in range(saves):
            step += 1
            location = claimed.new_location(step)
            if local:
                self.node[str(claimed.new_location(step))] = claimed.id
                if number % 2:
                    continue
            known = job.register.read() if ahead else None
            for shard in SHARDS:
                job.store.put(location.key(shard), str(location).encode())
            manifest = Manifest(
                location=str(location),
                step=step,
                epoch=claimed.epoch,
                attempt=claimed.attempt,
                world_size=2,
                files=tuple(File(name=shard, size=1, blocks=(0,)) for shard in SHARDS),
                progress=Progress(step=step),
                score=float(step * 7919 % 13),
                started=self.world.clock(),
                written=self.world.clock(),
            )
            try:
                self.acknowledged[str(location)] = claimed.commit(manifest, known)
            except (FencedError, InvalidOperationError):
                if CATALOG in self.world.objects:  # without a register nobody can say; to a writer that is fenced too
                    self._refuse(str(location))
                raise

    def _load(self, claimed: Claimed, point: ResumePoint) -> None:
        """As the library does it: what is not there is damaged, and set aside by whoever may, which a group that was
        dissolved may not."""
        try:
            for file in claimed.job.manifest(point).files:
                claimed.job.store.get(f"{point.location}/{file.name}")
        except (KeyNotFound, CheckpointCorruptError) as error:
            claimed.quarantine(point.location, str(error))
            raise Violation(f"{point.location} is resumed, and {error} is gone") from error

    def _resume_local(self, claimed: Claimed, told: Launched, point: ResumePoint | None) -> Location | None:
        """By what the register said when it was claimed, as the library does it."""
        offers = {Offer(location, 0, 1, claim) for location, claim in self.node.items()}
        choice = choose({NODE: offers}, claimed.catalog.begun, point, [NODE])
        self._check_local(claimed, told, point, None if choice is None else choice.location)
        return None if choice is None else choice.location

    # rules

    def _check_local(
        self, claimed: Claimed, told: Launched, point: ResumePoint | None, chosen: Location | None
    ) -> None:
        """Whose local saves count, told by who has trained and not by the register: those of the group that did so
        last, and the one that it began from itself."""
        before = [group for group in self.trained if group.epoch < claimed.epoch]
        last = max(before, key=lambda group: group.epoch, default=None)
        if chosen is not None:
            if last is None or last.uid != told.uid:
                raise Violation(f"{chosen} is resumed, but this job has not trained before")
            if self.node[str(chosen)] != last.claim and str(chosen) != last.local:
                raise Violation(f"{chosen} is resumed, and the group that trained last ({last.claim}) never had it")
            if point is not None and chosen.step < point.step:
                raise Violation(f"{chosen} is resumed although step {point.step} is committed")
        begun = claimed.catalog.begun
        if last is not None and begun is not None and begun.claim == last.claim:
            own = [Location.parse(location).step for location, claim in self.node.items() if claim == last.claim]
            least = max(own, default=0)
            if least > (point.step if point else 0) and (chosen is None or chosen.step < least):
                raise Violation(f"step {least}, the last local save, is lost: {chosen} is resumed")

    def _refuse(self, location: str) -> None:
        """From now on. It may have been committed, in silence, and removed again before its writer could look."""
        if self.world.history[-1].find(location) is not None:
            raise Violation(f"{location} is committed, its writer is told that it is not")
        self.refused.add(location)

    def _check_resumed(self, claim_id: str, point: ResumePoint | None) -> None:
        version = next((c for c in self.world.history if c.claim is not None and c.claim.id == claim_id), None)
        if version is None:
            raise Violation("a claim that no version holds")
        expected = resume_point(version)
        if point != expected:
            raise Violation(f"resumed {point}, but the claim's version says {expected}")

    def check(self) -> None:
        """Called after every write: new versions against those before, and the objects against the newest."""
        history = self.world.history
        while self.checked < len(history):
            before = history[self.checked - 1] if self.checked else Catalog()
            self._check_version(before, history[self.checked])
            self.checked += 1
        if CATALOG in self.world.objects and history:
            self._check_objects(history[-1])
        for told in self.launched:
            if told not in self.finished:
                self._check_fence(told)
                self.finished.append(told)

    def _check_fence(self, told: Launched) -> None:
        version = next((c for c in self.world.history if c.attempt == told.attempt and c.claim is None), None)
        if version is None or resume_point(version) != told.resume:
            raise Violation(f"attempt {told.attempt} was told {told.resume}, its fence says otherwise")

    def _check_version(self, before: Catalog, after: Catalog) -> None:
        if after.generation != before.generation + 1:
            raise Violation(f"generation {before.generation} is followed by {after.generation}")
        if after.epoch < before.epoch or after.attempt < before.attempt or after.sequence < before.sequence:
            raise Violation("epoch, attempt or sequence decreases")
        if after.attempt != before.attempt and after.claim is not None:
            raise Violation("a fence leaves a claim standing")
        self._check_owner(before, after)
        self._check_begun(before, after)
        for entry in after.checkpoints:
            if before.find(entry.location) is None:
                self._check_commit(before, entry)
        newest = before.live()[-2:]
        for entry in before.checkpoints:
            if after.find(entry.location) is None:
                self._check_removed(before, after, entry, newest)
        live = after.live()
        if any(a.step >= b.step for a, b in itertools.pairwise(live)):
            raise Violation("steps of live entries do not rise")
        if any(entry.location in self.refused for entry in after.checkpoints):
            raise Violation("an entry whose writer was told that it is not committed")

    def _check_owner(self, before: Catalog, after: Catalog) -> None:
        was, now = (c.owner.uid if c.owner else None for c in (before, after))
        if was == now:
            live = {entry.location for entry in before.live()}
            passed_over = [e.location for e in after.checkpoints if e.state == "abandoned" and e.location in live]
            if passed_over:
                raise Violation(f"{passed_over} are passed over in an attempt that is not the job's first")
            return
        earlier = {c.owner.uid for c in self.world.history[: self.checked] if c.owner}
        if now is None or now in earlier:
            raise Violation(f"uid {now} takes the root back from {was}")

    def _check_begun(self, before: Catalog, after: Catalog) -> None:
        """Who holds the claim says so, once, and no other change but the end of the line touches it."""
        if after.begun == before.begun:
            if before.begun is not None and before.owner != after.owner:
                raise Violation(f"{before.begun} outlives its job {before.owner}")
            return
        if after.begun is None:
            if after.epoch == before.epoch:
                raise Violation(f"{before.begun} ends without a fence or a claim")
        elif after.claim is None or after.claim != before.claim or after.begun.claim != after.claim.id:
            raise Violation(f"{after.begun} begins under the claim {after.claim}")

    def _check_commit(self, before: Catalog, entry: Entry) -> None:
        claim = before.claim
        if claim is None or (entry.attempt, entry.epoch) != (claim.attempt, claim.epoch):
            raise Violation(f"{entry.location} was committed by a zombie; the claim was {claim}")

    def _check_removed(self, before: Catalog, after: Catalog, entry: Entry, newest: list[Entry]) -> None:
        if all(removal.location != entry.location for removal in after.removing):
            raise Violation(f"committed {entry.location} is lost")
        if after.owner is not None and after.owner.uid in self.dissolved and after.claim is None:
            return
        held = [h for h in before.holds if h.location == entry.location and h.until > self.world.clock()]
        if held:
            raise Violation(f"{entry.location}, held by {held[0].by}, is removed")
        if entry in newest:
            raise Violation(f"{entry.location}, one of the two newest, is removed")
        if entry.pinned:
            raise Violation(f"pinned {entry.location} is removed")
        claim = before.claim
        if claim is not None and claim.resumed == entry.location and entry.state == "live":
            own = sum(e.epoch == claim.epoch for e in before.live())
            if own < 2:
                raise Violation(f"{entry.location} is removed while its resumer has committed {own}")

    def _check_objects(self, catalog: Catalog) -> None:
        for entry in catalog.checkpoints:
            for file in (*SHARDS, MANIFEST):
                if f"{entry.location}/{file}" not in self.world.objects:
                    raise Violation(f"{entry.location} is committed, its {file} is gone")

    def check_end(self) -> None:
        """What was acknowledged as committed stands in some version."""
        ever = {entry.location for version in self.world.history for entry in version.checkpoints}
        if lost := set(self.acknowledged) - ever:
            raise Violation(f"acknowledged but never committed: {sorted(lost)}")
        for actor in list(self.actors):
            actor.run.throw(greenlet.GreenletExit)

    def check_missing_register(self) -> None:
        """Nobody may create a register over checkpoints."""
        if self.lost is not None and CATALOG in self.world.objects:
            raise Violation("a register was created over checkpoints")

    def drain(self) -> None:
        """Let everybody finish on a healthy store."""
        for _ in range(10_000):
            if not self.actors:
                return
            self.advance(0, "ok")


def has_checkpoints(world: World) -> bool:
    return any(key.startswith(CHECKPOINTS) for key in world.objects)


__all__ = ["CatalogMissingError", "Simulation", "StorageError", "Violation", "has_checkpoints", "transitions"]
