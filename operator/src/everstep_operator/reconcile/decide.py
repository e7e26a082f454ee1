"""The decision: the policies in their order. Each is a file of its own; this one says only which of them has a say."""

from __future__ import annotations

from dataclasses import replace

from everstep_operator.api import ConditionType, Phase, TrainingJobStatus
from everstep_operator.api.status import Progress, Restarts
from everstep_operator.build.names import selector
from everstep_operator.reconcile import (
    checkpoints,
    completion,
    conditions,
    deadline,
    deletion,
    edits,
    elastic,
    ends,
    events,
    failure,
    gang,
    goodput,
    history,
    in_place,
    launch,
    planned,
    progress,
    recovery,
    requests,
    restart,
    retention,
    storage,
    suspend,
    teardown,
)
from everstep_operator.reconcile.attempt import Attempt, current
from everstep_operator.reconcile.classify import Cause
from everstep_operator.reconcile.observation import Observation, ProblemKind
from everstep_operator.reconcile.plan import MarkPod, Plan, ReadLogs


def decide(observation: Observation) -> Plan:
    """What to do about one job. A pure function: the same observation gives the same plan."""
    job = observation.job
    if not job.is_ours:
        return Plan(job.status)
    attempt = current(observation)
    if job.is_deleted:
        return _stamped(observation, deletion.plan(observation, attempt))
    plan = _choose(observation, attempt)
    # Before anything is written to storage, and before a finished job is deleted; but no recovery waits for it.
    finalizer = deletion.finalizer(observation)
    over = plan.status.phase is not None and plan.status.phase.finished
    actions = (*plan.actions, *finalizer) if attempt.number and not over else (*finalizer, *plan.actions)
    return _stamped(observation, replace(plan, actions=actions))


def _choose(observation: Observation, attempt: Attempt) -> Plan:
    stored = observation.job.status
    if stored.phase is not None and stored.phase.finished:
        return ends.finished(observation, attempt)
    cause = None
    if attempt.number and not attempt.ended:
        marks = gang.marks(observation, attempt)
        if marks and _worth_marking(observation):
            return _marking(observation, attempt, marks)
        if completion.succeeded(observation, attempt):
            return ends.succeed(observation, attempt, _survey(observation, attempt))
        cause = failure.find(observation, attempt)
        names = _logs_wanted(observation, attempt, cause)
        if names:
            return Plan(stored, actions=(ReadLogs(names),), again=True)
    status = _survey(observation, attempt)
    if cause is not None:
        return restart.failed(observation, attempt, status, cause)
    left = deadline.left(observation)
    if left is not None and left <= 0:
        return _deadline_exceeded(observation, attempt, status)
    if observation.job.spec.suspend and not planned.is_ending(observation, attempt):
        return suspend.plan(observation, attempt, status)
    stop = edits.plan(observation, attempt, status) or requests.restart(observation, attempt, status)
    if stop is not None:
        return stop
    if attempt.launched and not attempt.ended:
        plan = _steady(observation, attempt, status)
    else:
        plan = launch.plan(observation, attempt, status)
    if left is None or plan.again:
        return plan
    waits = [seconds for seconds in (plan.requeue_after, left) if seconds is not None]
    return replace(plan, requeue_after=min(waits))


def _worth_marking(observation: Observation) -> bool:
    """Labels come before an attempt's end: once that is recorded, a pod that no list finds, and whose deletion fails,
    would be nobody's. Where they are refused the attempt must not wait for them."""
    found = observation.results.problem
    return found is None or found.kind is ProblemKind.CLUSTER


def _marking(observation: Observation, attempt: Attempt, marks: tuple[MarkPod, ...]) -> Plan:
    """Nothing else is decided before; where the cluster does not take them, the status says what is waited for."""
    found, status = observation.results.problem, observation.job.status
    if found is None:
        return Plan(status, actions=marks, again=True)
    status = _survey(observation, attempt)
    names = ", ".join(mark.name for mark in marks)
    message = f"nothing is decided before {names} can be found by its labels again: {found.message}"
    holds = status.is_true(ConditionType.RUNNING)
    status = conditions.put(observation, status, ConditionType.RUNNING, holds, found.reason, message)
    wait = storage.retry_after(observation, status, found)
    return Plan(status, actions=marks, requeue_after=wait, again=True)


def _survey(observation: Observation, attempt: Attempt) -> TrainingJobStatus:
    """The status with all that was observed, whatever is decided about it."""
    status = gang.describe(observation, attempt, observation.job.status)
    status = in_place.count(observation, attempt, status)
    status = checkpoints.describe(observation, status)
    status = progress.describe(observation, attempt, status)
    status = history.describe(observation, status)
    status = recovery.measure(observation, attempt, status)
    status = goodput.describe(observation, status)
    status = edits.describe(observation, attempt, status)
    status = requests.describe(observation, attempt, status)
    status = storage.describe(observation, status, storage.problem(observation, attempt))
    last = status.last_checkpoint
    if last is not None:
        kind, message = ConditionType.CHECKPOINT_AVAILABLE, "the job can resume from its latest checkpoint"
        return conditions.put(observation, status, kind, True, "CheckpointCommitted", message)
    message = "no committed checkpoint is left that the job could resume from"
    return conditions.clear(observation, status, ConditionType.CHECKPOINT_AVAILABLE, "NoCheckpoint", message)


def _logs_wanted(observation: Observation, attempt: Attempt, cause: Cause | None) -> tuple[str, ...]:
    """Pods whose logs tell why they failed, or why workers were restarted in place; none where they have been read."""
    if observation.results.logs or observation.results.problem is not None:
        return ()
    if cause is not None:
        return failure.unexplained(attempt, cause)
    status = gang.describe(observation, attempt, observation.job.status)
    claims = in_place.seen(observation, attempt, status)
    if claims is None or not claims.restarts:
        return ()
    return tuple(pod.name for pod in attempt.pods[: in_place.MOST_LOGS])


def _steady(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> Plan:
    """The gang is whole, and nothing is wrong with it."""
    runs = status.gang is not None and status.gang.running is not None
    status = deadline.start(status, observation.now)
    status = status.model_copy(update={"phase": Phase.RUNNING if runs else Phase.STARTING})
    summary = (status.gang.summary if status.gang else None) or ""
    repair = () if launch.has_service(observation, attempt) else (launch.service(observation, attempt),)
    mends = (*gang.marks(observation, attempt), *repair)
    if runs:
        message = _all_run(observation, attempt, bool(mends) or bool(deletion.finalizer(observation)))
        status = conditions.put(observation, status, ConditionType.RUNNING, True, "GangRunning", message)
        status = conditions.clear(observation, status, ConditionType.RESTARTING, "GangRunning", message)
        status = conditions.clear(observation, status, ConditionType.STALLED, "GangRunning", message)
    else:
        waits = gang.waiting(attempt)
        reason = waits[0] if waits else "GangStarting"
        message = (status.gang.waiting if status.gang and waits else None) or summary
        status = conditions.put(observation, status, ConditionType.RUNNING, False, reason, message)
    status = conditions.clear(observation, status, ConditionType.SUSPENDED, "Resumed", "spec.suspend is false")
    upkeep, asks = retention.upkeep(observation), requests.ask(observation, attempt)
    if upkeep:
        status = storage.describe(observation, status, observation.results.deletion)
    elif not asks:
        status = storage.ready(observation, attempt, status)
    actions = (*teardown.deletions(status, attempt.others), *asks, *upkeep, *mends)
    return Plan(status, actions=actions, requeue_after=observation.poll_seconds, again=bool(asks))


def _all_run(observation: Observation, attempt: Attempt, mends: bool) -> str:
    """With what keeps the gang's service, a pod's labels or the job's finalizer from being put right; to try that again
    is no news."""
    found, before = observation.results.problem, observation.job.status.condition(ConditionType.RUNNING)
    if mends and found is None and before is not None and before.status == "True":
        return before.message
    hindrance = f"; {found.message}" if mends and found is not None and not storage.is_storage(found) else ""
    late = teardown.overdue(observation, attempt.others)
    left = f"; {', '.join(f'{pod.name} on {pod.node}' for pod in late)} did not stop" if late else ""
    return f"all pods run{elastic.described(observation, attempt)}{left}{hindrance}"


def _deadline_exceeded(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> Plan:
    limit = observation.job.spec.active_deadline_seconds
    message = f"the job was active for longer than activeDeadlineSeconds, {limit} s"
    if attempt.number and not attempt.ended:
        status = history.ended(observation, attempt, status, Cause(history.DEADLINE, message))
    return ends.fail(observation, attempt, status, history.DEADLINE, message)


def _stamped(observation: Observation, plan: Plan) -> Plan:
    """Round the status to what the API server stores, hold mere progress back, and tell the events."""
    meta, before = observation.job.metadata, observation.job.status
    common = {
        "observed_generation": meta.generation,
        "selector": selector(meta.uid),
        # What `kubectl get` would else leave blank.
        "restarts": plan.status.restarts or Restarts(),
        "progress": plan.status.progress or Progress(summary="no step yet"),
    }
    told = plan.status.model_copy(update=common)
    told = conditions.clear_to_true(observation, told, ConditionType.VALID, "SpecRead", "the job can be read")
    status = TrainingJobStatus.model_validate(told.dump())
    wait = None
    if status.phase is None or not status.phase.finished:
        status, wait = progress.held_back(observation, status)
    after = plan.requeue_after
    if wait is not None and not plan.again:
        after = wait if after is None else min(after, wait)
    return replace(plan, status=status, events=events.derive(before, status), requeue_after=after)
