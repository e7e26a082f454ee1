"""What a training script uses: a loop over steps that resumes, saves and ends as the job's policy says.

Every method but `report` is collective. A script that is killed at any point and started again goes on from the latest
committed step as if nothing had happened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import torch

from everstep import exits
from everstep.catalog import Entry, Progress, Resume, Retention, Store, open_store
from everstep.catalog.retention import Best
from everstep.checkpoint import termination
from everstep.checkpoint.agreement import Agreed, Agreement
from everstep.checkpoint.ending import exit_code, hidden_fence
from everstep.checkpoint.environment import Interval, JobEnvironment, Policy, read_environment
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.heartbeat import HeartbeatThread
from everstep.checkpoint.progress import RunProgress
from everstep.checkpoint.restoring import Loaded
from everstep.checkpoint.session import Session
from everstep.checkpoint.signals import TerminationFlag
from everstep.checkpoint.state import Application
from everstep.errors import CheckpointError, FencedError, InvalidOperationError

log = logging.getLogger("everstep")

FINAL_SAVE_TRIES = 3
FINAL_SAVE_PAUSE = 2.0
"""Seconds before the second try; doubles."""


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


class Checkpointer:
    """Saves and restores the given objects below one job's root.

    `model` and `optimizer` (one or several) go through torch.distributed.checkpoint: FSDP2, DTensor, plain modules.
    `scheduler`, `data` and further named objects need state_dict()/load_state_dict() or get_state()/set_state().
    `root` is a URI or path (default: EVERSTEP_ROOT); `interval_steps` and `interval_seconds` override EVERSTEP_POLICY.
    `config` (JSON-like) is digested into the manifest. `resume_step`: train on from this committed step instead of the
    latest; later ones are set aside. Errors: see `everstep.errors`.
    """

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
        heartbeat_seconds: float | None = None,
        resume_step: int | None = None,
        config: Any = None,
        environment: JobEnvironment | None = None,
        **others: Any,
    ) -> None:
        environment = environment or read_environment()
        uri = root or environment.root
        if store is None and not uri:
            raise InvalidOperationError("no root: set EVERSTEP_ROOT or pass root=, an s3:// URI or a path")
        policy = environment.policy or Policy()
        if interval_steps is not None or interval_seconds is not None:
            policy = policy.model_copy(update={"interval": Interval(steps=interval_steps, seconds=interval_seconds)})
        several = (optimizer,) if isinstance(optimizer, torch.optim.Optimizer) else tuple(optimizer or ())
        app = Application(model, several, scheduler, data, others)
        self._gang = Gang()
        self._environment = environment
        self._policy = policy
        self._retention = _retention(policy)
        self._session = Session(store or open_store(str(uri)), self._gang, app, environment)
        self._resume_step = resume_step
        self._config_digest = None if config is None else _digest(config)
        self._on_commit: Callable[[Committed], None] | None = None
        self._heartbeat_seconds = heartbeat_seconds or environment.heartbeat_seconds
        self._heartbeat: HeartbeatThread | None = None
        self._progress = RunProgress()
        self._termination = TerminationFlag()
        self._loaded: Committed | None = None
        self._tried_to_load = False
        self._current = 0
        self._total: int | None = None
        self._agreement = Agreement(self._gang)
        self._score: float | None = None
        self._custom: dict[str, Any] = {}
        self._saves_failed = 0
        self._last_save = time.monotonic()
        self._published = 0.0
        self._first_step: datetime | None = None
        self._finished = False
        self._peers_gone = False

    @classmethod
    def from_env(cls, **objects: Any) -> Checkpointer:
        """A checkpointer set up by the operator's variables `EVERSTEP_…`, whose messages reach the container's log."""
        _log_to_stderr()
        checkpointer = cls(**objects)
        termination.install(lambda: checkpointer.step)
        return checkpointer

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
        """Run `hook` on rank 0 after each commit; an exception of its own is logged and costs nothing else."""
        self._on_commit = hook

    # the context

    def __enter__(self) -> Checkpointer:
        self._termination.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, CheckpointError):
            fenced = hidden_fence(self._session, error)
            self._peers_gone = fenced is not None
            error = fenced or error
        code = exit_code(error)
        if isinstance(error, FencedError):
            print(f"fenced: {error}", file=sys.stderr, flush=True)
        if error is not None and code not in (0, exits.TERMINATED):
            termination.write_record(termination.describe(error, code, self.step))
        self.close(error)
        if error is not None and code in (exits.FENCED, exits.MISFIT) and not isinstance(error, SystemExit):
            if code == exits.MISFIT and self._gang.leads:
                print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(code) from error

    def close(self, error: BaseException | None = None) -> None:
        """End the heartbeat, give the signal handler back and, where the other ranks do the same, the process group."""
        self._termination.uninstall()
        self._end_heartbeat(error)
        if exit_code(error) in (0, exits.TERMINATED, exits.FENCED) and not self._peers_gone:
            self._settle()
            self._gang.close()

    def _end_heartbeat(self, error: BaseException | None) -> None:
        if self._heartbeat is None:
            return
        if error is None:
            done = self._finished or self._total is None
            self._heartbeat.close(phase="finished" if done else "failed")
        elif exit_code(error) == exits.TERMINATED:
            self._heartbeat.close(phase="failed", fatal="SIGTERM")
        else:
            self._heartbeat.close(phase="failed", fatal=f"{type(error).__name__}: {error}"[:500])
        self._heartbeat = None

    # the loop

    def steps(self, total_steps: int) -> Iterator[int]:
        """Step numbers from the one after the resumed step to `total_steps`; saves between them and at the end.

        Ends the process with code 143 where SIGTERM has come: all ranks have then saved the same step.
        """
        self.load_latest()
        self._total = total_steps
        self._tell(total_steps=total_steps, phase="training")
        self._last_save = time.monotonic()
        for step in range(self._progress.step + 1, total_steps + 1):
            self._current = step
            yield step
            self._end_step(step)
        self._finished = True
        self._tell(phase="finished")

    def report(
        self, *, tokens: int = 0, samples: int = 0, epoch: int | None = None, score: Any = None, **metrics: Any
    ) -> None:
        """Metrics of this step (numbers or tensors of one element, such as `loss=`), and what this rank has consumed.

        `tokens` and `samples` are this rank's own since the last report; they are summed over all ranks. `score` is
        what keepBest compares, and belongs to this step only.
        """
        self._progress.report(self._current, samples, tokens, epoch, score, metrics)

    def phase(self, name: str) -> None:
        """Show in the heartbeat what the run is doing: `evaluating` or `training`."""
        self._tell(phase=name)

    def _end_step(self, step: int) -> None:
        self._progress.end_step(step)
        if self._first_step is None:
            self._first_step = datetime.now(UTC)
        agreed = self._settle()
        if agreed.fenced:
            raise self._session.fenced() or FencedError("another worker group has taken over")
        interval = self._policy.interval
        last = step == self._total
        wanted = last or agreed.terminate or agreed.due or (interval.steps is not None and step % interval.steps == 0)
        self._vote(wanted)
        if wanted:
            self._settle()  # the counters of this step belong to its checkpoint
            self._save(step, last)
        self._publish(step)
        if agreed.terminate and not last:
            self._end_by_sigterm(step)

    def _vote(self, saving: bool) -> None:
        seconds = self._policy.interval.seconds
        due = self._gang.leads and not saving and seconds is not None and time.monotonic() - self._last_save >= seconds
        fenced = self._heartbeat is not None and self._heartbeat.fenced is not None
        self._agreement.vote(self._termination.raised, due, fenced, self._progress.take())

    def _settle(self) -> Agreed:
        agreed, counts = self._agreement.settle()
        self._progress.add(*counts)
        return agreed

    def _save(self, step: int, last: bool) -> None:
        """Save within the loop: a failure is counted and training goes on, but the final checkpoint must stand."""
        for turn in range(FINAL_SAVE_TRIES if last else 1):
            try:
                self.begin(step)
                self.save_state()
                self.commit()
            except FencedError:
                raise
            except CheckpointError as error:
                self._count_failure(step, error)
                if last and turn == FINAL_SAVE_TRIES - 1:
                    raise
                if last:
                    time.sleep(FINAL_SAVE_PAUSE * 2**turn)
            else:
                return
            finally:
                self._last_save = time.monotonic()
                self._progress.pause()

    def _count_failure(self, step: int, error: CheckpointError) -> None:
        self._saves_failed += 1
        if self._gang.leads:
            log.error("step %d was not saved: %s", step, error)
        self._tell(saves_failed=self._saves_failed, last_save_error=f"step {step}: {error}"[:500], phase="training")

    def _end_by_sigterm(self, step: int) -> None:
        message = f"SIGTERM: stopped after step {step}"
        if self._gang.leads:
            log.warning("%s", message)
        termination.write_record(termination.describe_sigterm(step, message))
        raise SystemExit(exits.TERMINATED)

    # transactions

    def begin(self, step: int) -> None:
        """Open a save. Raises InvalidOperationError where one is open."""
        self._session.begin(step)
        self._score = self._progress.score_at(step, self._policy.keep_best.metric if self._policy.keep_best else None)
        self._custom = {}
        self._start_heartbeat()
        self._tell(phase="saving", step=step)

    def save_state(self, **custom: Any) -> None:
        """Write every rank's shards; `custom` (JSON-like) is kept in the manifest. Nothing is committed yet."""
        draft = self._session.draft
        if draft is not None:
            self._progress.step = draft.step
        self._session.write(self._progress.counters())
        self._custom = custom

    def save_score(self, score: float) -> None:
        """What keep_best compares."""
        if self._session.draft is None:
            raise InvalidOperationError("save_score: no save is open; call begin(step) first")
        self._score = float(score)

    def commit(self) -> Committed:
        """Make the open save the latest committed step. Raises FencedError where another group has taken over."""
        metrics = self._progress.metrics()
        entry = self._session.commit(
            self._progress.as_document(), metrics, self._score, self._config_digest, self._custom
        )
        committed = Committed(
            entry.step, entry.location, entry.bytes, entry.score, self.progress, metrics, self._custom
        )
        if self._gang.leads:
            log.info("committed step %d: %s, %.1f MiB", entry.step, entry.location, entry.bytes / 2**20)
            self._run_hook(committed)
        self._tell(phase="training" if self._total is not None else "starting")
        if not self._environment.has_operator and not self._retention.keeps_everything:
            self._session.retain(self._retention)
        return committed

    def abort(self) -> None:
        """Give the open save up."""
        self._session.abort()

    def load_latest(self) -> Committed | None:
        """Load the claimed resume point once; None for a fresh start. `steps` calls this by itself."""
        if self._tried_to_load:
            return self._loaded
        resume = Resume()
        if self._resume_step is not None:
            resume = Resume(location=self._gang.lead(lambda: self._session.entry_of(self._resume_step or 0)).location)
        self._session.claim(resume)
        self._start_heartbeat()
        self._tell(phase="restoring")
        loaded = self._session.load_resume_point()
        self._tried_to_load = True
        if loaded is not None:
            self._take_over(loaded)
        elif self._gang.leads:
            log.info("fresh start in %s", self.store.uri)
        return self._loaded

    def load(self, step: int) -> Committed:
        """Load a committed step, e.g. for evaluation. To train on from it, pass `resume_step=` instead."""
        entry: Entry = self._gang.lead(lambda: self._session.entry_of(step))
        loaded = self._session.load_entry(entry)
        self._tried_to_load = True
        self._take_over(loaded)
        return _committed(loaded)

    def keep_last(self, count: int) -> None:
        """Keep only so many newest checkpoints, and what other policies keep. Under an operator its policy counts."""
        self._retain(last=count)

    def keep_best(self, count: int, lower_better: bool = True) -> None:
        """Keep so many checkpoints with the best scores besides. Under an operator its policy counts."""
        self._retain(best=Best(count=count, mode="min" if lower_better else "max"))

    def _retain(self, **policy: Any) -> None:
        if self._environment.has_operator:
            if self._gang.leads:
                log.warning("retention is the operator's: set spec.checkpoint.keepLast or keepBest instead")
            return
        if any(isinstance(value, int) and value < 1 for value in policy.values()):
            raise InvalidOperationError(f"keep at least one checkpoint, not {policy}")
        self._retention = self._retention.model_copy(update=policy)
        self._session.claim()
        self._session.retain(self._retention)

    # inside

    def _take_over(self, loaded: Loaded) -> None:
        self._progress.restore(loaded.restored.counters)
        self._current = loaded.manifest.step
        self._loaded = _committed(loaded)
        self._tell(step=loaded.manifest.step, resumed_step=loaded.manifest.step, load_seconds=loaded.seconds)
        if self._gang.leads:
            log.info(
                "resumed step %d from %s in %.2f s (saved by %d ranks, now %d)",
                loaded.manifest.step,
                loaded.manifest.location,
                loaded.seconds,
                loaded.restored.world_size,
                self._gang.world_size,
            )

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
            self._heartbeat.start()

    def _tell(self, **changes: Any) -> None:
        if self._heartbeat is not None:
            self._heartbeat.update(**changes)

    def _publish(self, step: int) -> None:
        """Progress for the next beat; metrics may wait for an accelerator, so not at each step."""
        if self._heartbeat is None:
            return
        now = time.monotonic()
        changes: dict[str, Any] = {
            "step": step,
            "samples": self._progress.samples,
            "tokens": self._progress.tokens,
            "data_epoch": self._progress.epoch,
            "seconds_per_step": self._progress.seconds_per_step,
            "first_step": self._first_step,
        }
        if now - self._published >= self._heartbeat_seconds / 2 or step == self._total:
            changes["metrics"] = self._progress.metrics()
            self._published = now
        self._tell(**changes)


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
    )


def _retention(policy: Policy) -> Retention:
    best = None if policy.keep_best is None else Best(count=policy.keep_best.count, mode=policy.keep_best.mode)
    return Retention(last=policy.keep_last, best=best, every=policy.keep_every)


def _digest(config: Any) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def _log_to_stderr() -> None:
    """Show everstep's messages where the script has not set up logging itself."""
    if logging.getLogger().handlers or log.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("everstep: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
