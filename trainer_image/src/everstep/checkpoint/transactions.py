"""Saves as transactions, loads and retention: what the loop of `Checkpointer` is made of, and what others may use.

Every method but `report` is collective.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from everstep.catalog import Progress, Store, open_store
from everstep.catalog.progress import LoadTimes, SaveTimes, rate
from everstep.catalog.retention import Best
from everstep.checkpoint.blocks import connect_early
from everstep.checkpoint.environment import JobEnvironment, read_environment
from everstep.checkpoint.failures import SaveFailures
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.heartbeat import HeartbeatThread
from everstep.checkpoint.local.tier import LocalTier
from everstep.checkpoint.mark import StepMark
from everstep.checkpoint.options import (
    check_custom,
    check_data,
    config_of,
    digest_of,
    local_folder,
    policy_of,
    retention_of,
)
from everstep.checkpoint.progress import SCORE, RunProgress
from everstep.checkpoint.publishing import Publishing
from everstep.checkpoint.restoring.loading import THREADS
from everstep.checkpoint.restoring.model_weights import LoadedWeights, fill
from everstep.checkpoint.restoring.restoration import Loaded
from everstep.checkpoint.restoring.sources import choose, entry_of, find, restarted
from everstep.checkpoint.saving.beside import Beside
from everstep.checkpoint.saving.saves import Done, Record, Saves
from everstep.checkpoint.saving.shards import Shards
from everstep.checkpoint.saving.uploading import DirectUpload, ProcessUpload
from everstep.checkpoint.session import Identity, Session
from everstep.checkpoint.state.application import Application
from everstep.errors import CheckpointError, FencedError, InvalidOperationError
from everstep.weights.assets import assets_of

log = logging.getLogger("everstep")


@dataclass(frozen=True)
class Committed:
    """A checkpoint that stands, as `load`, `load_latest` and `commit` return it."""

    step: int
    location: str
    bytes: int
    score: float | None
    progress: Progress | None = None
    metrics: Mapping[str, float] | None = None
    custom: Mapping[str, Any] | None = None
    times: SaveTimes | None = None
    """What saving it has cost; of a checkpoint that was loaded it is not known."""
    load: LoadTimes | None = None
    """What loading it has cost, where it was loaded."""


class Transactions:
    """Saves and restores the given objects below one job's root. For the arguments see `Checkpointer`."""

    def __init__(
        self,
        *,
        model: torch.nn.Module | None = None,
        optimizer: torch.optim.Optimizer
        | tuple[torch.optim.Optimizer, ...]
        | list[torch.optim.Optimizer]
        | None = None,
        scheduler: Any = None,
        data: Any = None,
        root: str | None = None,
        store: Store | None = None,
        interval_steps: int | None = None,
        interval_seconds: float | None = None,
        asynchronous: bool | None = None,
        heartbeat_seconds: float | None = None,
        resume_step: int | None = None,
        resume: str = "auto",
        config: Any = None,
        assets: Mapping[str, str | bytes] | None = None,
        weights_steps: int | None = None,
        local: str | Path | None = None,
        local_steps: int | None = None,
        local_bytes: int | None = None,
        local_replicas: int | None = None,
        save_timeout_seconds: float | None = None,
        environment: JobEnvironment | None = None,
        **others: Any,
    ) -> None:
        self._mark = StepMark()
        environment = environment or read_environment()
        uri = root or environment.root
        if store is None and not uri:
            raise InvalidOperationError("no root: set EVERSTEP_ROOT or pass root=, an s3:// URI or a path")
        self._policy = policy_of(
            *(environment, interval_steps, interval_seconds, asynchronous),
            *(weights_steps, local_steps, local_replicas, save_timeout_seconds),
        )
        several = (optimizer,) if isinstance(optimizer, torch.optim.Optimizer) else tuple(optimizer or ())
        app = Application(model, several, scheduler, data, others)
        self._gang = Gang()
        check_data(data, self._gang.world_size)
        self._environment = environment
        self._retention = retention_of(self._policy)
        remote = store is None and str(uri).startswith("s3://")
        store = store or self._gang.everywhere(lambda: open_store(str(uri)))
        folder = local_folder(environment, self._policy, store.uri, local, local_bytes, asked=local_steps is not None)
        self._session = Session(store, self._gang, app, environment, folder)
        self._shards = Shards(app, self._gang, ProcessUpload(str(uri)) if remote else DirectUpload(store))
        kept = assets_of(model, assets or {})
        self._saves = Saves(self._session, self._shards, kept)
        self._publishing = Publishing(store, model, self._policy.weights, kept)
        self._beside = Beside(self._saves, self._gang, several)
        self._local = LocalTier(self._policy.local, self._session, self._shards.plans, several, self._tell)
        self._failures = SaveFailures(self._policy.save_timeout_seconds)
        self._resume_step = resume_step
        self._config = config_of(config)
        self._config_digest = None if config is None else digest_of(config)
        self._on_commit: Callable[[Committed], None] | None = None
        self._heartbeat_seconds = heartbeat_seconds or environment.heartbeat_seconds
        self._heartbeat: HeartbeatThread | None = None
        self._progress = RunProgress()
        self._loaded: Committed | None = None
        self._tried_to_load = self._by_hand = False
        self._current = 0
        app.config_digest = self._config_digest
        self._resume = resume
        self._score: float | None = None
        self._score_of = self._policy.keep_best.metric if self._policy.keep_best else SCORE
        self._told_unscored = False
        self._notes: dict[str, Any] = {}
        self._custom: dict[str, Any] = {}
        self._last_save = time.monotonic()

    # state of the run

    @property
    def step(self) -> int:
        """The step under way, or the last one that ended."""
        return self._current

    @property
    def rank(self) -> int:
        return self._gang.rank

    @property
    def store(self) -> Store:
        """The job's root."""
        return self._session.store

    @property
    def progress(self) -> Progress:
        return self._progress.as_document()

    @property
    def resumed(self) -> Committed | None:
        """What was loaded; None for a fresh start."""
        return self._loaded

    def on_commit(self, hook: Callable[[Committed], None]) -> None:
        """Run `hook` on rank 0 after each commit, in the thread that saves beside training where there is one; an
        exception of its own is logged and costs nothing else."""
        self._on_commit = hook

    def report(
        self, *, tokens: int = 0, samples: int = 0, epoch: int | None = None, score: Any = None, **metrics: Any
    ) -> None:
        """Metrics of this step (numbers or tensors of one element, such as `loss=`), and what this rank has consumed.

        `tokens` and `samples` are this rank's own since the last report; they are summed over all ranks. `score` is
        what keepBest compares, and belongs to this step only. Raises InvalidOperationError for what is no number.
        """
        self._progress.report(self._current, samples, tokens, epoch, score, metrics)

    def note(self, **custom: Any) -> None:
        """Keep this (JSON-like) in the manifest of every save from now on: the data's version, a commit, a host.

        Raises InvalidOperationError for what JSON cannot hold.
        """
        check_custom("note", custom)
        self._notes |= custom

    # saves

    def save(self, step: int, score: float | None = None, **custom: Any) -> Committed:
        """A whole transaction in one call: the latest committed step is then this one. Raises as its parts do."""
        self.begin(step)
        self.save_state(**custom)
        if score is not None:
            self.save_score(score)
        return self.commit()

    def begin(self, step: int) -> None:
        """Open a save. Raises InvalidOperationError where one is open, or where the ranks are at different steps."""
        self._land()
        self._saves.begin(step)
        self._opened(step)
        self._progress.add(*self._gang.start_sum(self._progress.take()).wait())
        self._tell(phase="saving", step=step)

    def save_state(self, **custom: Any) -> None:
        """Write every rank's shards; `custom` (JSON-like) is kept in the manifest. Nothing is committed yet."""
        draft = self._saves.draft
        if draft is not None:
            self._progress.step = draft.step
        check_custom("save_state", custom)
        self._saves.write(self._progress.counters())
        self._custom = self._notes | custom

    def save_score(self, score: float) -> None:
        """What keep_best compares."""
        if self._saves.draft is None:
            raise InvalidOperationError("save_score: no save is open; call begin(step) first")
        self._score = float(score)

    def commit(self) -> Committed:
        """Make the open save the latest committed step. Raises FencedError where another group has taken over."""
        record = self._record()
        committed = _stood(self._saves.commit(record), record)
        if self._gang.leads:
            self._announce(committed)
        self._count_success()
        self._tell(phase="training")
        if self._retains:
            self._session.retain(self._retention)
        return committed

    def abort(self) -> None:
        """Give the open save up."""
        self._saves.abort()

    def _opened(self, step: int) -> None:
        self._current = step
        self._score = self._progress.score_at(step, self._score_of)
        self._custom = dict(self._notes)
        self._last_save = time.monotonic()
        self._start_heartbeat()

    def _record(self) -> Record:
        return Record(
            self._progress.as_document(),
            self._progress.metrics(),
            self._score,
            self._score_of,
            self._config_digest,
            self._config,
            self._custom,
        )

    def _launch(self, step: int, waited: float) -> None:
        """Save what is now `step`, and go on training while it is stored."""
        self._opened(step)
        self._progress.step = step
        record = self._record()

        def stood(done: Done) -> None:
            self._announce(_stood(done, record))

        def tidy() -> None:
            if self._retains:
                self._session.remove_expendable(self._retention)

        self._beside.launch(step, waited, self._progress.counters(), record, stood, tidy)
        self._tell(saving_step=step)

    def _land(self) -> float:
        """Wait for the save under way, if there is one; returns for how long. A failure is counted, not raised: but
        FencedError is."""
        began = time.monotonic()
        flight = self._beside.take()
        if flight is None:
            return 0.0
        if not flight.landed:
            self._tell(phase="saving")
        try:
            flight.wait()
        except FencedError:
            raise
        except CheckpointError as error:
            self._count_failure(flight.step, error)
        else:
            self._count_success()
        self._tell(phase="training", saving_step=None)
        return time.monotonic() - began

    def _count_failure(self, step: int, error: CheckpointError) -> None:
        self._failures.count(step, error)
        if self._gang.leads:
            log.error("step %d was not saved: %s", step, error)
        told = {"saves_failed": self._failures.total, "saves_failed_in_a_row": self._failures.in_a_row}
        self._tell(**told, last_save_error=f"step {step}: {error}"[:500], phase="training")

    def _count_success(self) -> None:
        self._failures.committed()
        self._tell(saves_failed_in_a_row=0)

    @property
    def _retains(self) -> bool:
        return not self._environment.has_operator and not self._retention.keeps_everything

    def _announce(self, committed: Committed) -> None:
        times = committed.times
        assert times is not None
        log.info(
            "committed step %d: %s, %.1f MiB; staged %.2f s, uploaded %.2f s (%.0f MiB/s, %d retries), "
            "committed %.2f s, training stood %.2f s",
            *(committed.step, committed.location, committed.bytes / 2**20),
            *(times.staged_seconds, times.uploaded_seconds),
            *(rate(times.bytes, times.uploaded_seconds) / 2**20, times.retries),
            *(times.committed_seconds, times.blocked_seconds),
        )
        self._tell(last_save=times)
        if committed.score is None and self._retention.best is not None and not self._told_unscored:
            self._told_unscored = True
            log.warning(
                "step %d has no score, and the best are to be kept: report(%s=…) in a step that is saved gives it one",
                *(committed.step, self._score_of),
            )
        self._run_hook(committed)

    def publish_weights(self) -> None:
        """Publish the model's weights of this step for consumers, and wait until they stand; see `everstep.weights`.

        Raises FencedError; a failure of storage is counted and logged. `steps` does it by the policy, beside training.
        """
        self._publish_weights(self._current, wait=True)

    # loads

    def load_latest(self) -> Committed | None:
        """Load the claimed resume point once; None for a fresh start. `steps` calls this by itself."""
        if self._tried_to_load:
            return self._loaded
        connect_early(self.store, THREADS)
        self._claim()
        self._start_heartbeat()
        self._tell(phase="restoring")
        loaded = self._session.load_resume_point()
        self._tried_to_load = True
        if loaded is not None:
            self._take_over(loaded)
        elif self._gang.leads:
            say = log.info if self._resume == "disable" else log.warning
            say("fresh start in %s: nothing there to resume from", self.store.uri)
        return self._loaded

    def load(self, step: int) -> Committed:
        """Load a committed step, e.g. for evaluation. To train on from it, pass `resume_step=` instead."""
        self._land()
        self._local.land()
        loaded = self._session.load_entry(self._gang.lead(lambda: entry_of(self.store, step)))
        self._tried_to_load = self._by_hand = True
        self._local.leave()
        self._take_over(loaded)
        return _committed(loaded)

    def load_weights(self, source: str | int, strict: bool = True) -> LoadedWeights:
        """Load the model's weights alone, and nothing else: a committed step of this root, or the path of a checkpoint
        or of another job's root (its latest step). `strict=False`: as far as both have the same names; the result
        tells what was missing or unexpected. Raises CheckpointNotFoundError, CheckpointCorruptError,
        ArchitectureMismatchError.

        The run stays where it is: a fresh one trains on from these weights at its own step 1.
        """
        app = self._session.app
        if app.model is None:
            raise InvalidOperationError("load_weights: this Checkpointer has no model")
        self._land()
        self._local.land()
        store = self.store
        if isinstance(source, str):
            root, entry = self._gang.lead(lambda: find(source))
            store = self._gang.everywhere(lambda: open_store(root))
        else:
            entry = self._gang.lead(lambda: entry_of(store, source))
        return fill(app, store, entry, self._gang, strict)

    # retention

    def keep_last(self, count: int) -> None:
        """Keep only so many newest checkpoints, and what other policies keep. Under an operator its policy counts."""
        self._retain(last=count)

    def keep_best(self, count: int, lower_better: bool = True) -> None:
        """Keep so many checkpoints with the best scores besides. Under an operator its policy counts."""
        self._retain(best=Best(count=count, mode="min" if lower_better else "max"))

    def keep_every(self, steps: int) -> None:
        """Keep each step that is a multiple of `steps` besides. Under an operator its policy counts."""
        self._retain(every=steps)

    def keep_within(self, seconds: float) -> None:
        """Keep what was committed so many seconds ago or later besides. Under an operator its policy counts."""
        if not 0 < seconds < math.inf:
            raise InvalidOperationError(f"keep_within: an age in seconds, not {seconds}")
        self._retain(within=seconds)

    def _retain(self, **policy: Any) -> None:
        if self._environment.has_operator:
            if self._gang.leads:
                log.warning("retention is the operator's: set spec.checkpoint.keepLast or keepBest instead")
            return
        if any(isinstance(value, int) and value < 1 for value in policy.values()):
            raise InvalidOperationError(f"keep at least one checkpoint, not {policy}")
        self._retention = self._retention.model_copy(update=policy)
        self._claim()
        self._session.retain(self._retention)

    # inside

    def _claim(self) -> Identity:
        if self._session.identity is not None or self._environment.has_operator:
            return self._session.claim()
        again = restarted(self._gang)
        resume = self._gang.lead(lambda: choose(self._resume, self._resume_step, self.store, again))
        return self._session.claim(resume)

    def _take_over(self, loaded: Loaded) -> None:
        self._progress.restore(loaded.restored.counters)
        self._current = loaded.manifest.step
        self._loaded = _committed(loaded)
        step, times = loaded.manifest.step, loaded.times
        self._tell(step=step, resumed_step=step, last_load=times)
        if self._gang.leads:
            log.info(
                "resumed step %d from %s%s in %.2f s: %.1f MiB, %.0f MiB/s, %d retries (saved by %d ranks, now %d)",
                *(step, loaded.manifest.location),
                " of the local tier" if self._session.local_save == loaded.manifest.location else "",
                *(times.seconds, times.bytes / 2**20, rate(times.bytes, times.seconds) / 2**20, times.retries),
                *(loaded.restored.world_size, self._gang.world_size),
            )

    def _publish_weights(self, step: int, wait: bool = False) -> None:
        self._session.app.check_whole()
        identity = self._claim()
        self._publishing.now(identity, step, self.progress, self._progress.metrics(), self._weights_failed, wait)

    def _weights_failed(self, message: str) -> None:
        if self._gang.leads:
            log.error("%s", message)
        self._tell(last_save_error=message[:500])

    def _run_hook(self, committed: Committed) -> None:
        if self._on_commit is None:
            return
        try:
            self._on_commit(committed)
        except Exception:
            log.exception("on_commit failed after step %d", committed.step)

    def _start_heartbeat(self) -> None:
        identity = self._session.identity
        if self._heartbeat is None and self._gang.leads and identity is not None:
            self._heartbeat = HeartbeatThread(
                self.store, identity.attempt, identity.epoch, self._heartbeat_seconds, self._session.fenced
            )
            self._heartbeat.update(former_step=self._mark.former)
            self._heartbeat.start()

    def _tell(self, **changes: Any) -> None:
        if self._heartbeat is not None:
            self._heartbeat.update(**changes)


def _stood(done: Done, record: Record) -> Committed:
    entry = done.entry
    return Committed(
        entry.step,
        entry.location,
        entry.bytes,
        entry.score,
        record.progress,
        record.metrics,
        record.custom,
        done.times,
    )


def _committed(loaded: Loaded) -> Committed:
    manifest = loaded.manifest
    return Committed(
        manifest.step,
        manifest.location,
        manifest.bytes,
        manifest.score,
        manifest.progress,
        manifest.metrics,
        manifest.custom,
        load=loaded.times,
    )
