"""Keeps the whole contract without torch: claims, beats, commits and resumes as everstep.catalog asks.

It serves the operator's tests, in a thread beside them or in an image of its own. Its training is a chain of hashes, so
that a resume from the wrong step, or one that repeats or skips a step, ends in another result. Pod 0 trains; the others
wait for its end, as ranks of a gang would.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path

from awscrt.checksums import crc32c

from everstep.catalog import (
    File,
    Heartbeat,
    JobCatalog,
    Manifest,
    Progress,
    S3Access,
    Store,
    open_store,
    read_heartbeat,
    write_heartbeat,
)
from everstep.catalog.job import Claimed
from everstep.catalog.manifest import BLOCK
from everstep.catalog.progress import Phase, read_request
from everstep.checkpoint import termination
from everstep.checkpoint.mark import StepMark
from everstep.errors import CheckpointCorruptError, FencedError, StorageUnavailableError
from everstep.exits import FENCED, TERMINATED

SHARD = "__0_0.distcp"


@dataclass(frozen=True)
class Options:
    """What the run does. Each field is also an argument (--total-steps) and a variable (LITE_TOTAL_STEPS)."""

    total_steps: int = 50
    seconds_per_step: float = 0.05
    save_every: int = 10
    heartbeat_seconds: float = 0.5
    shard_bytes: int = 1024
    crash_step: int = 0
    """Exit after this step with `crash_code`; 0: never."""
    crash_code: int = 1
    crash_attempts: int = 1
    """Only attempts up to this one crash or hang."""
    crash_silently: bool = False
    """Leave no record in the termination message."""
    save_seconds: float = 0.0
    """How long a save takes; beats go on."""
    evaluate_every: int = 0
    """Steps between two evaluations; 0: none."""
    evaluate_seconds: float = 0.0
    hang_step: int = 0
    """After this step beat on, but do nothing any more."""
    hang_phase: str = ""
    """The same, as soon as the run comes to this phase (starting: without a beat)."""
    ignore_sigterm: bool = False


@dataclass(frozen=True)
class Job:
    """What the operator tells a pod."""

    root: str
    attempt: int
    uid: str
    leader: bool = True
    """Whether this is pod 0."""
    termination_log: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Job:
        return cls(
            root=environment["EVERSTEP_ROOT"],
            attempt=int(environment["EVERSTEP_ATTEMPT"]),
            uid=environment["EVERSTEP_JOB_UID"],
            leader="is_host=1" in environment.get("PET_RDZV_CONF", "is_host=1"),
            termination_log=Path(environment.get("EVERSTEP_TERMINATION_LOG", "/dev/termination-log")),
        )


def chain(steps: int) -> bytes:
    """The state after so many steps without any interruption."""
    state = b""
    for step in range(1, steps + 1):
        state = advance(state, step)
    return state


def advance(state: bytes, step: int) -> bytes:
    return hashlib.sha256(state + step.to_bytes(8, "big")).digest()


@dataclass
class Run:
    """One pod's process. `stop` is SIGTERM."""

    job: Job
    options: Options = field(default_factory=Options)
    access: S3Access | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    gang: Callable[[], bool] = lambda: True
    """Whether all pods of the gang are there, as a rendezvous would find out."""
    kill: threading.Event = field(default_factory=threading.Event)
    """SIGKILL, for runs in a thread: nothing is written any more."""
    step: int = 0
    state: bytes = b""
    hung: float | None = None
    """When it began to hang (monotonic seconds)."""

    def __call__(self) -> int:
        """Train to the end; returns the exit code."""
        store = open_store(self.job.root, self.access)
        try:
            if not self.job.leader:
                return self._follow(store)
            return self._train(store)
        except FencedError as error:
            self._tell(FENCED, error)
            return FENCED
        except Exception as error:
            self._tell(1, error)
            raise

    def _train(self, store: Store) -> int:
        while not self.gang():
            if self.kill.wait(0.02):
                return 137
            if self.stop.is_set() and not self.options.ignore_sigterm:
                return TERMINATED
        if self._hangs("starting"):
            return self._hang(None, "starting")
        claimed = JobCatalog(store).claim(self.job.attempt, self.job.uid)
        mark = StepMark(self.job.termination_log) if self.job.termination_log is not None else None
        beats = _Beats(store, claimed, self.options, mark)
        if self._hangs("restoring"):
            return self._hang(beats, "restoring")
        self._restore(claimed)
        beats.update("training", self.step, resumed=claimed.resume.step if claimed.resume else None)
        if self._hangs("compiling"):
            return self._hang(beats)
        while self.step < self.options.total_steps:
            if self.kill.wait(self.options.seconds_per_step):
                return 137
            self.step += 1
            self.state = advance(self.state, self.step)
            beats.update("training", self.step)
            faulty = self.job.attempt <= self.options.crash_attempts
            if faulty and self.step == self.options.crash_step:
                return self._crash()
            if faulty and self.step == self.options.hang_step:
                return self._hang(beats)
            if self.options.evaluate_every and self.step % self.options.evaluate_every == 0:
                if self._hangs("evaluating"):
                    return self._hang(beats, "evaluating")
                self._pause(beats, "evaluating", self.options.evaluate_seconds)
                beats.update("training", self.step)
            stopping = self.stop.is_set() and not self.options.ignore_sigterm
            due = beats.asked(self.step) or self.step % self.options.save_every == 0
            if stopping or due or self.step == self.options.total_steps:
                if self._hangs("saving"):
                    return self._hang(beats, "saving")
                self._pause(beats, "saving", self.options.save_seconds)
                self._save_at_last(store, claimed)
                beats.update("training", self.step)
            if stopping:
                beats.update("failed", self.step, now=True)  # as the library does: it has not come to its end
                return TERMINATED
        beats.update("finished", self.step, now=True)
        return self._hang(beats, "finished") if self._hangs("finished") else 0

    def _follow(self, store: Store) -> int:
        while not self.kill.wait(0.2):
            if self.stop.is_set() and not self.options.ignore_sigterm:
                return TERMINATED
            try:
                found = read_heartbeat(store, self.job.attempt)
            except StorageUnavailableError:
                continue
            if isinstance(found, tuple) and found[0].phase == "finished":
                return self._hang(None, "finished") if self._hangs("finished") else 0
        return 137

    def _restore(self, claimed: Claimed) -> None:
        point = claimed.resume
        if point is None:
            return
        source = claimed.job if point.root is None else JobCatalog(open_store(point.root, self.access))
        manifest = source.manifest(point)
        shard = source.store.get(f"{point.location}/{SHARD}")
        kept = manifest.file(SHARD)
        if kept is None or _blocks(shard) != kept.blocks:
            raise CheckpointCorruptError(f"{point.location}/{SHARD} does not have the committed checksums")
        self.step, self.state = point.step, shard[:32]

    def _save_at_last(self, store: Store, claimed: Claimed) -> None:
        """Storage that gives no answer is waited for, as long as it takes."""
        while not self.kill.is_set():
            try:
                latest = claimed.job.require().latest()
                if latest is None or latest.step < self.step:  # else the answer was lost, the commit was not
                    self._save(store, claimed)
            except StorageUnavailableError:
                continue
            return

    def _save(self, store: Store, claimed: Claimed) -> None:
        location = claimed.new_location(self.step)
        shard = self.state + bytes(max(0, self.options.shard_bytes - 32))
        metadata = b"lite"
        store.put(location.key(SHARD), shard)
        store.put(location.key(".metadata"), metadata)
        now = datetime.now(UTC)
        if self.kill.is_set():
            return
        claimed.commit(
            Manifest(
                location=str(location),
                step=self.step,
                epoch=claimed.epoch,
                attempt=claimed.attempt,
                world_size=1,
                files=(
                    File(name=SHARD, size=len(shard), blocks=_blocks(shard), rank=0),
                    File(name=".metadata", size=len(metadata), blocks=_blocks(metadata)),
                ),
                progress=Progress(step=self.step),
                score=1.0 / self.step,
                started=now,
                written=now,
            )
        )

    def _crash(self) -> int:
        if not self.options.crash_silently:
            self._tell(self.options.crash_code, RuntimeError(f"told to crash at step {self.step}"))
        return self.options.crash_code

    def _hangs(self, phase: str) -> bool:
        return self.options.hang_phase == phase and self.job.attempt <= self.options.crash_attempts

    def _hang(self, beats: _Beats | None, phase: Phase = "training") -> int:
        """Beat on, where there are beats, and do nothing else."""
        self.hung = time.monotonic()
        while not self.kill.wait(self.options.heartbeat_seconds):
            if self.stop.is_set() and not self.options.ignore_sigterm:
                return TERMINATED
            if beats is not None:
                beats.update(phase, self.step, now=True)
        return 137

    def _pause(self, beats: _Beats, phase: Phase, seconds: float) -> None:
        """Something that takes its time and shows that it lives."""
        until = time.monotonic() + seconds
        while seconds and (left := until - time.monotonic()) > 0 and not self.kill.is_set():
            beats.update(phase, self.step)
            self.kill.wait(min(left, self.options.heartbeat_seconds))

    def _tell(self, code: int, error: Exception) -> None:
        if self.job.termination_log is not None:
            termination.write_record(termination.describe(error, code, self.step), self.job.termination_log)


class _Beats:
    """Writes the heartbeat as often as the options say, on the training thread: there is no other work."""

    def __init__(self, store: Store, claimed: Claimed, options: Options, mark: StepMark | None) -> None:
        now = datetime.now(UTC)
        self._mark = mark
        self._store = store
        self._every = options.heartbeat_seconds
        self._next = 0.0
        self._last = Heartbeat(
            attempt=claimed.attempt,
            epoch=claimed.epoch,
            beat=0,
            time=now,
            phase="restoring",
            phase_since=now,
            total_steps=options.total_steps,
            seconds_per_step=options.seconds_per_step,
            former_step=mark.former if mark is not None else None,
        )

    def asked(self, step: int) -> bool:
        """Whether somebody asks for a save, which this step is then."""
        if self._last.request is None or self._last.request_step is not None:
            return False
        self._last = self._last.model_copy(update={"request_step": step})
        return True

    def _look(self) -> None:
        found = read_request(self._store, self._last.attempt)
        if isinstance(found, tuple) and found[0].checkpoint != self._last.request:
            self._last = self._last.model_copy(update={"request": found[0].checkpoint, "request_step": None})

    def update(self, phase: Phase, step: int, *, resumed: int | None = None, now: bool = False) -> None:
        time_now = datetime.now(UTC)
        if phase != self._last.phase:
            self._last = self._last.model_copy(update={"phase": phase, "phase_since": time_now})
            now = True
        if resumed is not None:
            self._last = self._last.model_copy(update={"resumed_step": resumed})
        if step and self._last.first_step is None and step != self._last.resumed_step:
            self._last = self._last.model_copy(update={"first_step": time_now})
        self._last = self._last.model_copy(update={"step": step})
        if self._mark is not None:
            self._mark.set(step)
        if now or time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            self._last = self._last.model_copy(update={"beat": self._last.beat + 1, "time": time_now})
            with contextlib.suppress(StorageUnavailableError):  # the next one may come through
                self._look()
                write_heartbeat(self._store, self._last)


def _blocks(body: bytes) -> tuple[int, ...]:
    return tuple(crc32c(body[start : start + BLOCK]) for start in range(0, len(body), BLOCK))


def options_from(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Arguments win over variables, variables over defaults."""
    parser = argparse.ArgumentParser(prog="lite", description=__doc__)
    for option in fields(Options):
        name = option.name.replace("_", "-")
        kind: Callable[[str], object] = _yes if isinstance(option.default, bool) else type(option.default)
        default = environment.get(f"LITE_{option.name.upper()}")
        parser.add_argument(f"--{name}", type=kind, default=option.default if default is None else kind(default))
    return Options(**vars(parser.parse_args(arguments)))


def _yes(text: str) -> bool:
    return text.lower() in ("1", "true", "yes")


def main() -> int:
    run = Run(Job.from_environment(os.environ), options_from(sys.argv[1:], os.environ))
    signal.signal(signal.SIGTERM, lambda *_: run.stop.set())
    code = run()
    print(f"step {run.step} of {run.options.total_steps}, exit code {code}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
