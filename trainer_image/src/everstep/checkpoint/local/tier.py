"""The loop's side of the local tier: when a save is due, and what its failure costs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from everstep.catalog import Progress
from everstep.checkpoint.environment import LocalPolicy
from everstep.checkpoint.local.saves import LocalSaves
from everstep.checkpoint.saving.planning import Plans
from everstep.checkpoint.session import Session
from everstep.errors import CheckpointError

log = logging.getLogger("everstep")

Tell = Callable[..., None]
"""Puts fields into the heartbeat."""
FAREWELL = 5.0
"""Seconds for which a rank that ends by an error waits for the save under way, which goes no further than its node."""


class LocalTier:
    """Without a policy it does nothing."""

    def __init__(
        self,
        policy: LocalPolicy | None,
        session: Session,
        plans: Plans,
        optimizers: Sequence[torch.optim.Optimizer],
        tell: Tell,
    ) -> None:
        self.failed = 0
        self._policy = policy
        self._session = session
        self._plans = plans
        self._optimizers = optimizers
        self._tell = tell
        self._saves: LocalSaves | None = None
        self._last = time.monotonic()
        self._uncopied: str | None = None
        """Told once while it stays the same."""

    def begin(self) -> None:
        """Collective, before the first step. Raises FencedError."""
        folder = self._session.local
        if self._policy is not None and folder is not None and self._saves is None:
            older = self._session.gang.everywhere(folder.groups)  # before the register is asked: no successor's
            self._session.begin()
            identity, copies = self._session.claim(), self._policy.replicas > 0
            self._saves = LocalSaves(self._session, identity, folder, self._plans, self._optimizers, copies, older)
        self._last = time.monotonic()

    def due(self) -> bool:
        """By this rank's clock; what counts is rank 0's, told to all."""
        seconds = None if self._policy is None else self._policy.interval.seconds
        return seconds is not None and time.monotonic() - self._last >= seconds

    def wanted(self, step: int, due: bool) -> bool:
        steps = None if self._policy is None else self._policy.interval.steps
        return self._saves is not None and (due or (steps is not None and step % steps == 0))

    def save(self, step: int, counters: Mapping[str, int], progress: Progress, wait: bool) -> None:
        """Collective. Save what is now `step` beside training, or (`wait`) before it goes on. A failure is counted."""
        if self._saves is None:
            return
        self._settle(self._saves)
        self._last = time.monotonic()
        try:
            self._saves.launch(step, counters, progress)
        except CheckpointError as error:
            self._count_failure(step, error)
        if wait:
            self._settle(self._saves)

    def hear(self) -> None:
        """Take notice of a save that is over."""
        if self._saves is not None and self._saves.landed:
            self._settle(self._saves)

    def land(self) -> None:
        """Wait for the save under way: before tensors change other than by an optimizer's step."""
        if self._saves is not None:
            self._settle(self._saves)

    def leave(self) -> None:
        """Collective. Another state was loaded: what was saved before is not what the run goes on from."""
        self._session.local_save = None
        if self._saves is not None:
            self._saves.forget()
            self._tell(local_step=None)

    def close(self, together: bool, finished: bool) -> None:
        """`together`: all ranks end in order; `finished`: nobody will resume."""
        if self._saves is not None:
            self._saves.close(together, None if together else FAREWELL, finished)

    def _settle(self, saves: LocalSaves) -> None:
        step = saves.step
        try:
            kept = saves.take()
        except CheckpointError as error:
            self._count_failure(step, error)
            return
        if kept is None:
            return
        log.debug("step %d is in the local tier after %.2f s", kept.step, kept.seconds)
        self._tell(local_step=kept.step)
        if kept.uncopied is not None and kept.uncopied != self._uncopied:
            if self._session.gang.leads:
                log.warning("step %d is not on other nodes: %s", kept.step, kept.uncopied)
            self._tell(last_local_error=f"step {kept.step}: {kept.uncopied}"[:500])
        self._uncopied = kept.uncopied

    def _count_failure(self, step: int | None, error: CheckpointError) -> None:
        self.failed += 1
        if self._session.gang.leads:
            log.warning("step %d is not in the local tier: %s", step, error)
        self._tell(local_saves_failed=self.failed, last_local_error=f"step {step}: {error}"[:500])
