"""hypothesis chooses the moves of the simulation, and shrinks what breaks it."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from everstep.catalog.keys import CATALOG
from tests.model.simulation import Actor, Simulation, has_checkpoints
from tests.model.store import OUTCOMES

INDEX = st.integers(0, 7)
MOST_ACTORS = 6

steps_taken = 0
"""Moves of all runs of this process, so that the test can say how many there were."""


class CatalogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.sim = Simulation()

    def _room(self) -> bool:
        return len(self.sim.actors) < MOST_ACTORS

    @precondition(lambda self: self._room())
    @rule(fresh=st.sampled_from([False, False, False, True]))
    def fence(self, fresh: bool) -> None:
        self.sim.fence(fresh)

    @precondition(lambda self: self._room() and self.sim.launched)
    @rule(
        late=st.booleans(),
        index=INDEX,
        saves=st.integers(1, 5),
        corrupt=st.sampled_from([False, False, False, True]),
        local=st.sampled_from([False, False, True]),
        ahead=st.booleans(),
    )
    def work(self, late: bool, index: int, saves: int, corrupt: bool, local: bool, ahead: bool) -> None:
        self.sim.work(index if late else len(self.sim.launched) - 1, saves, corrupt, local, ahead)

    @precondition(lambda self: self._room() and self.sim.launched)
    @rule(saves=st.integers(1, 3), local=st.booleans())
    def work_undisturbed(self, saves: int, local: bool) -> None:
        """A group that begins, saves and ends: only so do many of them follow each other."""
        self.sim.work(len(self.sim.launched) - 1, saves, local=local)
        self._finish(self.sim.actors[-1])

    @precondition(lambda self: self._room() and self.sim.world.history)
    @rule(policy=INDEX)
    def retire(self, policy: int) -> None:
        self.sim.retire(policy)

    @precondition(lambda self: self._room() and self.sim.world.history)
    @rule()
    def sweep(self) -> None:
        self.sim.sweep()

    @precondition(lambda self: self._room() and self.sim.world.history)
    @rule(index=INDEX)
    def prune(self, index: int) -> None:
        self.sim.prune(index)

    @precondition(lambda self: self._room() and self.sim.world.history and len(self.sim.dissolved) < 2)
    @rule()
    def dissolve(self) -> None:
        self.sim.dissolve()

    @precondition(lambda self: self._room() and self.sim.world.history)
    @rule(index=INDEX, pinned=st.booleans())
    def pin(self, index: int, pinned: bool) -> None:
        self.sim.pin(index, pinned)

    @precondition(lambda self: self._room() and self.sim.world.history)
    @rule(index=INDEX, seconds=st.sampled_from([10, 10_000]))
    def hold(self, index: int, seconds: int) -> None:
        self.sim.hold(index, seconds)

    @precondition(lambda self: self.sim.actors)
    @rule(index=INDEX, requests=st.integers(1, 12), outcome=st.sampled_from(OUTCOMES))
    def advance(self, index: int, requests: int, outcome: str) -> None:
        """Some good requests of one actor, then one with this outcome."""
        actor = self.sim.actors[index % len(self.sim.actors)]
        for number in range(requests):
            if actor not in self.sim.actors:
                return
            last = number == requests - 1
            self.sim.advance(self.sim.actors.index(actor), outcome if last else "ok")

    @precondition(lambda self: self.sim.actors)
    @rule(index=INDEX)
    def run_to_the_end(self, index: int) -> None:
        """One actor, undisturbed: only so does a run get long enough for retention to have something to do."""
        self._finish(self.sim.actors[index % len(self.sim.actors)])

    @precondition(lambda self: len(self.sim.actors) > 1)
    @rule(index=INDEX, requests=st.integers(1, 6), other=st.integers(1, 7))
    def overtake(self, index: int, requests: int, other: int) -> None:
        """One actor stands still between two requests while another comes to its end, and then comes to its own."""
        actors = self.sim.actors
        slow, fast = actors[index % len(actors)], actors[(index + 1 + other % (len(actors) - 1)) % len(actors)]
        for _ in range(requests):
            if slow in self.sim.actors:
                self.sim.advance(self.sim.actors.index(slow), "ok")
        self._finish(fast)
        self._finish(slow)

    def _finish(self, actor: Actor) -> None:
        while actor in self.sim.actors:
            self.sim.advance(self.sim.actors.index(actor), "ok")

    @precondition(lambda self: self.sim.actors)
    @rule(index=INDEX, outcome=st.sampled_from(OUTCOMES))
    def swap_goes_wrong(self, index: int, outcome: str) -> None:
        """Run one actor up to its next swap, and let that have the outcome."""
        actor = self.sim.actors[index % len(self.sim.actors)]
        for _ in range(40):
            if actor not in self.sim.actors:
                return
            swap = actor.pending is not None and actor.pending.is_swap
            self.sim.advance(self.sim.actors.index(actor), outcome if swap else "ok")
            if swap:
                return

    @precondition(lambda self: self.sim.actors)
    @rule(index=INDEX)
    def kill(self, index: int) -> None:
        self.sim.kill(index)

    @precondition(lambda self: self.sim.world.in_flight)
    @rule(index=INDEX)
    def deliver(self, index: int) -> None:
        self.sim.deliver(index)

    @rule()
    def reincarnate(self) -> None:
        self.sim.reincarnate()

    @precondition(lambda self: CATALOG in self.sim.world.objects and has_checkpoints(self.sim.world))
    @rule(index=INDEX)
    def lose_register_and_fence(self, index: int) -> None:
        """The register is gone: whoever looks now creates none; then it is restored. (Who has looked before there was
        any, and whose creation is under way since, would create one: no store could tell.)"""
        self.sim.lose_register()
        self.sim.fence()
        actor = self.sim.actors[-1]
        for _ in range(index):
            if actor in self.sim.actors:
                self.sim.advance(self.sim.actors.index(actor), "ok")
        self.sim.check_missing_register()
        self.sim.restore_register()

    @invariant()
    def rules_hold(self) -> None:
        self.sim.check()

    def teardown(self) -> None:
        global steps_taken
        self.sim.drain()
        self.sim.check()
        self.sim.check_end()
        steps_taken += self.sim.steps
