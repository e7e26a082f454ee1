"""The loop's side of weight-only saves: when one is due, and what its failure costs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from torch import nn

from everstep.catalog import Progress, Store
from everstep.checkpoint.environment import WeightsPolicy
from everstep.checkpoint.session import Identity
from everstep.errors import CheckpointError, FencedError, InvalidOperationError
from everstep.weights.publisher import WeightsPublisher

log = logging.getLogger("everstep")


class Publishing:
    """Without a policy nothing is published but what `now` is called for. All methods but `due` are collective."""

    def __init__(
        self, store: Store, model: nn.Module | None, policy: WeightsPolicy | None, assets: Mapping[str, bytes]
    ) -> None:
        if policy is not None and model is None:
            raise InvalidOperationError("weights are to be published, but there is no model: pass model= too")
        self._policy = policy
        self._store = store
        self._model = model
        self._assets = assets
        self._publisher: WeightsPublisher | None = None
        self._last = time.monotonic()
        self._published = -1

    def begin(self, identity: Identity) -> None:
        """Before the first step: from here on no older worker group can publish. Raises FencedError."""
        if self._policy is not None:
            self._started(identity)
        self._last = time.monotonic()

    def due(self) -> bool:
        """By this rank's clock; what counts is rank 0's, told to all."""
        seconds = None if self._policy is None else self._policy.interval.seconds
        return seconds is not None and time.monotonic() - self._last >= seconds

    def wanted(self, step: int, last: bool, due: bool) -> bool:
        if self._policy is None:
            return False
        steps = self._policy.interval.steps
        return last or due or (steps is not None and step % steps == 0)

    def now(
        self,
        identity: Identity,
        step: int,
        progress: Progress,
        metrics: Mapping[str, float],
        failed: Callable[[str], None],
        wait: bool = False,
    ) -> None:
        """Publish the weights of `step`. Storage's failures are told to `failed` and cost the set; being fenced, and
        a model whose weights cannot be published at all, is raised.
        """
        publisher = self._started(identity)
        self._settle(publisher, failed)
        if step != self._published:
            try:
                publisher.publish(step, progress, metrics)
            except (FencedError, InvalidOperationError):
                raise
            except CheckpointError as error:
                failed(f"the weights of step {step} were not published: {error}")
            self._published, self._last = step, time.monotonic()
        if wait:
            self._settle(publisher, failed)

    def close(self, together: bool) -> None:
        """`together`: all ranks end in order; else nobody is waited for."""
        if self._publisher is not None:
            self._publisher.close(together)

    def _settle(self, publisher: WeightsPublisher, failed: Callable[[str], None]) -> None:
        try:
            publisher.settle()
        except FencedError:
            raise
        except CheckpointError as error:
            failed(f"the weights of step {self._published} were not published: {error}")

    def _started(self, identity: Identity) -> WeightsPublisher:
        if self._publisher is None:
            if self._model is None:
                raise InvalidOperationError("there are no weights to publish: pass model= too")
            keep_last = (self._policy or WeightsPolicy()).keep_last
            self._publisher = WeightsPublisher(self._store, self._model, keep_last, self._assets)
            self._publisher.take(identity)
        return self._publisher
