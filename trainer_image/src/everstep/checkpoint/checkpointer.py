"""What a training script uses: a loop over steps that resumes, saves and ends as the job's policy says.

A script that is killed at any point and started again goes on from the latest committed step as if nothing had
happened.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from everstep import exits
from everstep.checkpoint import termination
from everstep.checkpoint.agreement import Agreed, Agreement
from everstep.checkpoint.ending import exit_code, hidden_fence
from everstep.checkpoint.signals import TerminationFlag
from everstep.checkpoint.transactions import Committed, Transactions
from everstep.errors import CheckpointError, FencedError, InvalidOperationError, StorageError, TornStateError

__all__ = ["Checkpointer", "Committed"]

log = logging.getLogger("everstep")

FINAL_SAVE_TRIES = 3
FINAL_SAVE_PAUSE = 2.0
"""Seconds before the second try; doubles."""
TELLING = (exits.FENCED, exits.MISFIT, exits.UNSAVED)
"""Exit codes that say more than a traceback does."""
LONG_WAIT = 0.1
"""Seconds beyond which it is told of that a save has waited for the one before."""
FAREWELL = 20.0
"""Seconds for which a rank that ends by an error waits for the save under way: torchrun allows 30 after SIGTERM."""


class Checkpointer(Transactions):
    """Saves and restores the given objects below one job's root.

    `model` and `optimizer` (one or several) go through torch.distributed.checkpoint: FSDP2, DTensor, plain modules.
    `scheduler`, `data` and further named objects need state_dict()/load_state_dict() or get_state()/set_state(), or are
    dicts.
    `root` is a URI or path (default: EVERSTEP_ROOT); `interval_steps` and `interval_seconds` together take the place of
    the interval in EVERSTEP_POLICY, and `asynchronous` that of its `async`. `config` (JSON-like, no secrets) is
    kept in the manifest. `resume_step`: train on from this committed step instead of the latest; later ones are set
    aside.
    `resume`: "auto" (the latest committed step, else a fresh start), "disable" (a fresh start; what is committed is set
    aside), or the path of a checkpoint or of another job's root. Under an operator the job's `spec.resume` says it, and
    neither counts.
    `assets`: files by name that go beside the weights, such as a tokenizer's; the config.json of a transformers model
    is among them by itself. `weights_steps`: publish the weights alone each so many steps.
    `local`: a folder of the node (default: EVERSTEP_LOCAL_PATH) in which each rank saves its part every `local_steps`
    steps, at most `local_bytes` in all; what restarts in place resumes from there. With `local_replicas=1` each part is
    copied to another node, for the loss of one. `save_timeout_seconds`: saves that fail are counted, and training goes
    on; but where none has succeeded for so long, the run ends with SavesFailedError. Errors: `everstep.errors`.
    """

    def __init__(self, **objects: Any) -> None:
        super().__init__(**objects)
        self._termination = TerminationFlag()
        self._agreement = Agreement(self._gang)
        self._total: int | None = None
        self._saves_waited = 0
        self._fenced: FencedError | None = None
        self._published = 0.0
        self._first_step: datetime | None = None
        self._peers_gone = False
        self._ends_process = False
        self._finish = False

    @classmethod
    def from_env(cls, **objects: Any) -> Checkpointer:
        """For the script of a container: messages reach its log, and a worker group that was fenced, or that can never
        work as it stands, leaves the `with` block with an exit code that says so instead of an exception."""
        _log_to_stderr()
        checkpointer = cls(**objects)
        checkpointer._ends_process = True
        termination.install(lambda: checkpointer.step)
        return checkpointer

    # the context

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            error = self._last_word()
        if isinstance(error, Exception) and not isinstance(error, CheckpointError):
            fenced = hidden_fence(self._session, error)
            self._peers_gone = fenced is not None
            error = fenced or error
        code = exit_code(error)
        if isinstance(error, FencedError):
            print(f"fenced: {error}", file=sys.stderr, flush=True)
        if code == exits.TERMINATED:
            termination.write_record(
                termination.describe_sigterm(self.step, f"{self._termination.name}: stopped after step {self.step}")
            )
        elif error is not None and code != 0:
            termination.write_record(termination.describe(error, code, self.step))
        self.close(error)
        if self._ends_process and code in TELLING and not isinstance(error, SystemExit):
            if code != exits.FENCED and self._gang.leads:
                print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(code) from error
        if error is not None and (kind is None or (self._peers_gone and isinstance(error, FencedError))):
            raise error

    def _last_word(self) -> Exception | None:
        """What ends a run whose loop was left while a save was under way."""
        try:
            self._land()
        except Exception as error:  # noqa: BLE001 - raised once everything is closed
            return error
        return self._fenced

    def close(self, error: BaseException | None = None) -> None:
        """End the heartbeat, give the signal handler back and, where the other ranks do the same, the process group.

        Raises FencedError where the last save was refused and no `error` ends the run: who closes by hand must hear it.
        """
        self._termination.uninstall()
        together = exit_code(error) in (0, exits.TERMINATED, exits.FENCED) and not self._peers_gone
        landed = self._await_flight(None if exit_code(error) == 0 else FAREWELL)
        self._end_heartbeat(error)
        self._publishing.close(together)
        self._local.close(together, exit_code(error) == 0 and self._progress.step == self._total)
        self._beside.close(together and landed)
        if landed:
            self._shards.close()
        if together:
            self._settle()
            self._gang.close()
        if error is None and self._fenced is not None:
            raise self._fenced

    def _await_flight(self, seconds: float | None) -> bool:
        """Whether no save is under way any more. One that is abandoned can still be committed, or never will be."""
        flight = self._beside.take()
        if flight is None:
            return True
        log.info("waiting for the save of step %d", flight.step)
        try:
            flight.wait(seconds)
        except TimeoutError:
            log.warning("step %d: its save was given up: it was still under way after %.0f s", flight.step, FAREWELL)
            return False
        except FencedError as fence:
            self._fenced = fence
        except CheckpointError as failure:
            self._count_failure(flight.step, failure)
        except Exception:
            log.debug("the save of step %d ended with its gang", flight.step, exc_info=True)
        return True

    def _end_heartbeat(self, error: BaseException | None) -> None:
        if self._heartbeat is None:
            return
        code = exit_code(error)
        if code == 0:
            self._heartbeat.close(phase="finished")
        elif code == exits.TERMINATED:
            self._heartbeat.close(phase="failed", fatal="SIGTERM")
        else:
            self._heartbeat.close(phase="failed", fatal=f"{type(error).__name__}: {error}"[:500])
        self._heartbeat = None

    # the loop

    def steps(self, total_steps: int) -> Iterator[int]:
        """Step numbers from the one after the resumed step to `total_steps`; saves between them and at the end.

        Ends the process with code 143 where SIGTERM or Ctrl+C has come: all ranks have then saved the same step. Before
        the first step there is nothing to save, and a signal ends the process as it would end any.
        """
        self.load_latest()
        if self._by_hand:
            self._check_newest()
            self._by_hand = False
        self._session.app.check_whole()
        self._total, self._finish = total_steps, False
        self._mark.set(self._progress.step)
        self._tell(total_steps=total_steps, phase="training")
        self._termination.install()
        self._publishing.begin(self._claim())
        self._local.begin()
        self._last_save = time.monotonic()
        if self._progress.step >= total_steps:
            self._stand_at_the_end(total_steps)
        while self._progress.step < self._total:
            self._current = step = self._progress.step + 1
            yield step
            self._end_step(step)
        self._tell(phase="finished")

    def _stand_at_the_end(self, total_steps: int) -> None:
        """Nothing is left to do; what only the nodes have is committed, for they go with the job."""
        step, point = self._progress.step, self._claim().resume
        committed = point is not None and not point.root and point.step >= step
        if self._session.local_save is not None and not committed:
            self._save(step, True, False)
        if self._gang.leads:
            log.info("nothing to do: step %d of %d is committed", step, total_steps)

    def finish(self) -> None:
        """End early: the step after this one is the last, and saved. One rank may call this for all."""
        self._finish = True

    def stopping(self) -> bool:
        """For a loop of your own, once a step: whether some rank has got SIGTERM or Ctrl+C; the same on all ranks.

        Then save and `raise SystemExit(143)`. From the first call on, neither ends the process by itself; a second
        Ctrl+C does.
        """
        self._termination.install()
        return self._gang.start_sum([int(self._termination.raised)]).wait()[0] > 0

    def due(self, step: int) -> bool:
        """For a loop of your own, at the end of each step: whether the job's policy, or its operator, wants it saved.

        The same on all ranks. Shows the step in the heartbeat, too.
        """
        self._current = step
        self._progress.end_step(step)
        self._mark.set(step)
        if self._first_step is None:
            self._first_step = datetime.now(UTC)
            self._tell_unheeded()
        interval = self._policy.interval
        late = interval.seconds is not None and time.monotonic() - self._last_save >= interval.seconds
        asked = self._heartbeat is not None and self._heartbeat.asks_for_save()
        mine = int(self._gang.leads and (late or asked))
        told, *counts = self._gang.start_sum([mine, *self._progress.take()]).wait()
        self._progress.add(*counts)
        wanted = told > 0 or (interval.steps is not None and step % interval.steps == 0)
        if wanted and self._heartbeat is not None:
            self._heartbeat.saves(step)
        self._tell(phase="training")
        self._publish(step)
        return wanted

    def _tell_unheeded(self) -> None:
        """What the policy asks for and only `steps` does."""
        policy = {
            "checkpoint.local": self._policy.local,
            "checkpoint.weights": self._policy.weights,
            "failurePolicy.saveTimeoutSeconds": self._policy.save_timeout_seconds,
        }
        asked = [name for name, value in policy.items() if value is not None]
        if asked and self._gang.leads:
            log.warning("%s: only loops over steps() do that, this one does not", " and ".join(asked))

    def phase(self, name: str) -> None:
        """Show in the heartbeat what the run is doing: `evaluating`, `compiling` or `training`. Each has its own limit,
        after which a run that shows nothing new counts as hanging."""
        self._tell(phase=name)

    def _check_newest(self) -> None:
        """After `load(step)`: refuse to train towards commits that the register would refuse, one by one."""
        self._claim()
        latest = self._gang.lead(lambda: self._session.job.require().latest())
        step = self._progress.step
        if latest is not None and step < latest.step:
            raise InvalidOperationError(
                f"step {step} was loaded, but step {latest.step} is committed: to train on from the older one, pass "
                f"resume_step={step} instead of calling load()"
            )

    def _end_step(self, step: int) -> None:
        self._progress.end_step(step)
        self._mark.set(step)
        if self._first_step is None:
            self._first_step = datetime.now(UTC)
        agreed = self._settle()
        if agreed.fenced:
            raise self._fenced or self._session.fenced() or FencedError("another worker group has taken over")
        if self._beside.landed:
            self._hear()
        if agreed.unsaved and not (agreed.terminate or agreed.finish or step == self._total):  # else a save is due now
            raise self._failures.error()
        if agreed.finish:
            self._total = step
            self._tell(total_steps=step)
        interval = self._policy.interval
        last = step == self._total
        wanted = last or agreed.terminate or agreed.due or (interval.steps is not None and step % interval.steps == 0)
        publishing = self._publishing.wanted(step, last, agreed.publish)
        locally = not last and not agreed.terminate and self._local.wanted(step, agreed.local)
        self._local.hear()
        self._vote(wanted, publishing, locally)
        saved = False
        if locally:
            self._settle()  # as below
            counters, wait = self._progress.counters(), not self._policy.asynchronous
            self._local.save(step, counters, self.progress, wait)
        if wanted:
            if self._heartbeat is not None:
                self._heartbeat.saves(step)
            self._settle()  # the counters of this step belong to its checkpoint
            saved = self._save(step, last, agreed.terminate)
        if publishing:
            self._publish_weights(step, wait=last)
        self._publish(step)
        if agreed.terminate and not last:
            self._end_by_sigterm(step, saved)

    def _vote(self, saving: bool, publishing: bool, locally: bool) -> None:
        seconds = self._policy.interval.seconds
        idle = self._gang.leads and not saving and not self._beside.busy
        asked = self._heartbeat is not None and self._heartbeat.asks_for_save()
        due = idle and (asked or (seconds is not None and time.monotonic() - self._last_save >= seconds))
        fenced = self._fenced is not None or (self._heartbeat is not None and self._heartbeat.fenced is not None)
        publish = self._gang.leads and not publishing and self._publishing.due()
        local = self._gang.leads and not locally and self._local.due()
        unsaved = self._gang.leads and self._failures.overdue
        self._agreement.vote(
            Agreed(self._termination.raised, due, fenced, self._finish, publish, local, unsaved), self._progress.take()
        )

    def _settle(self) -> Agreed:
        agreed, counts = self._agreement.settle()
        self._progress.add(*counts)
        return agreed

    def _hear(self) -> None:
        """The outcome of a save beside training. The ranks hear of it at different steps, so a fence is voted on."""
        try:
            self._land()
        except FencedError as error:
            self._fenced = error

    def _save(self, step: int, last: bool, ending: bool) -> bool:
        """Save within the loop; returns whether `step` stands. A failure is counted and training goes on, but the final
        checkpoint must stand.

        A save waits for the one before: every interval is saved, and where storage is slower than the interval training
        slows down to it, rather than be told that it is safe when it is not.
        """
        if self._fenced is not None:
            raise self._fenced  # the other ranks hear of it now, in the same place
        waited = self._land()
        if waited > LONG_WAIT:
            self._saves_waited += 1
            self._tell(saves_waited=self._saves_waited)
            if self._gang.leads:
                log.warning(
                    "step %d waited %.1f s for the save before: storage is slower than the interval", step, waited
                )
        for turn in range(FINAL_SAVE_TRIES if last else 1):
            try:
                if turn and self._saves.stands(step):
                    self._count_success()  # the answer was lost, the commit was not
                    return True
                if self._policy.asynchronous and not last and not ending:
                    self._launch(step, waited)
                    return False
                self.begin(step)
                self.save_state()
                self.commit()
            except FencedError:
                raise
            except CheckpointError as error:
                if self._cannot_be_kept(error):
                    raise
                self._count_failure(step, error)
                if last and turn == FINAL_SAVE_TRIES - 1:
                    raise
                if last:
                    time.sleep(FINAL_SAVE_PAUSE * 2**turn)
            else:
                return True
            finally:
                self._last_save = time.monotonic()
                self._progress.pause()
        return False

    def _cannot_be_kept(self, error: CheckpointError) -> bool:
        """Whether it is the state that is wrong, and will be at each save: to train on would be in vain. So it is taken
        to be where none was ever captured, and this is the second time in a row."""
        if self._saves.written or isinstance(error, StorageError):
            return False
        again = self._failures.in_a_row > 0 and not self._saves.ever_written
        return again or isinstance(error, InvalidOperationError | TornStateError)

    def _end_by_sigterm(self, step: int, saved: bool) -> None:
        outcome = "saved" if saved else "not saved"
        message = f"{self._termination.name}: stopped after step {step}, which was {outcome}"
        if self._gang.leads:
            log.warning("%s", message)
        termination.write_record(termination.describe_sigterm(step, message))
        raise SystemExit(exits.TERMINATED)

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


def _log_to_stderr() -> None:
    """Show everstep's messages where the script has not set up logging itself."""
    if logging.getLogger().handlers or log.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("everstep: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
