"""The way from no gang to a whole one: probe, resume path, dry run, fence, service, pods.

Each step is taken where the one before has left its mark, so that a pass goes on where another one was killed. After
the fence nothing is asked again: an attempt that is fenced and has no (or not all) pods is completed, never replaced.
"""

from __future__ import annotations

from dataclasses import replace

from everstep_operator.api import ConditionType, Phase, TrainingJobStatus
from everstep_operator.build import Launch, pod_manifest, pod_name, service_manifest, service_name
from everstep_operator.reconcile import attempt as attempts
from everstep_operator.reconcile import (
    backoff,
    conditions,
    deadline,
    ends,
    gang,
    history,
    rendezvous,
    resume,
    storage,
    teardown,
)
from everstep_operator.reconcile.attempt import Attempt
from everstep_operator.reconcile.observation import Observation, PodView
from everstep_operator.reconcile.plan import (
    Action,
    CreatePod,
    DeletePod,
    DryRunPod,
    EnsureService,
    Fence,
    Plan,
    Probe,
    ValidateResumePath,
)

STOPPING_SECONDS = 5.0
"""How soon to look again at pods that are being deleted, though a watch event should come first."""


def plan(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> Plan:
    """No attempt is in force, or it has ended, or its gang is not whole yet."""
    found = storage.problem(observation, attempt)
    if found is not None and storage.is_final(found, attempt):
        status = _describe(observation, status, found.reason, found.message)
        return ends.fail(observation, attempt, status, found.reason, found.message)
    status = deadline.start(status, observation.now)
    old = _old(attempt)
    deletes = teardown.deletions(status, old)
    if found is not None:
        status = _describe(observation, status, found.reason, found.message)
        return Plan(status, actions=deletes, requeue_after=storage.retry_after(observation, status, found))
    if attempt.abandoned:
        return _complete(observation, attempt, status, old, deletes)
    saving = teardown.in_the_way(observation, attempt.pods) if _has_saved(attempt) else ()
    if saving:  # a fence would take the save, for which they have their grace, away from them
        names = ", ".join(pod.name for pod in saving)
        status = _describe(observation, status, "Stopping", f"waiting for {names} to save and stop")
        return Plan(status, actions=deletes, requeue_after=STOPPING_SECONDS)
    status = _still(observation, attempt, status)
    checks = _checks(observation, attempt)
    if checks:
        return Plan(status, actions=(*deletes, *checks), again=True)
    catalog = attempts.own(observation)
    fence = Fence(
        at_least=attempts.next_number(observation),
        resume=resume.mode(observation),
        adopt=attempts.adopts(observation),
        expect_existing=status.last_checkpoint is not None,
        expected=catalog.attempt if catalog is not None else 0,
    )
    return Plan(status, actions=(fence, *deletes), again=True)


def _checks(observation: Observation, attempt: Attempt) -> tuple[Action, ...]:
    """What must hold before a fence, as far as it is not known yet. After a failure nothing is asked: the pods were
    accepted before, and those of the failed attempt may still use up the quota."""
    results = observation.results
    checks: list[Action] = []
    if resume.is_first(observation) and not results.probed:
        checks.append(Probe())
    path = resume.path(observation)
    if path is not None and results.resume is None:
        checks.append(ValidateResumePath(path))
    planned = attempt.number == 0 or _has_saved(attempt)
    if planned and not results.dry_run and not teardown.in_the_way(observation, _old(attempt)):
        number = attempts.next_number(observation)
        sample = Launch(number, observation.job.spec.nodes, epoch=0, generation=0)
        checks.append(DryRunPod(pod_manifest(observation.job, sample, 0)))
    return tuple(checks)


def _complete(
    observation: Observation,
    attempt: Attempt,
    status: TrainingJobStatus,
    old: tuple[PodView, ...],
    deletes: tuple[DeletePod, ...],
) -> Plan:
    """The attempt is fenced: its service, then its pods, as soon as no older pod is in the way."""
    status = backoff.bounded(observation.job.spec.failure_policy.backoff, status, observation.now)
    until = status.restarts.next_time if status.restarts else None
    if until is not None and until > observation.now and not attempt.pods:
        left = (until - observation.now).total_seconds()
        message = f"attempt {attempt.number} starts at {until:%Y-%m-%dT%H:%M:%SZ}: the last one committed nothing"
        status = _describe(observation, status, "BackOff", message)
        return Plan(status, actions=deletes, requeue_after=left)
    built = gang.launch(observation, attempt)
    if built is None:
        status = _describe(observation, status, "CatalogUnknown", "the fenced catalog has not been read")
        return Plan(status, actions=deletes, requeue_after=storage.retry_after(observation, status))
    if built.nodes > 1:
        address = _address(observation, attempt)
        if address is None:
            status = _still(observation, attempt, status)
            return Plan(status, actions=(*deletes, service(observation, attempt)), again=True)
        built = replace(built, rendezvous=address)
    blocking = teardown.in_the_way(observation, old)
    if blocking:
        names = ", ".join(pod.name for pod in blocking)
        status = _describe(observation, status, "Stopping", f"waiting for {names} to stop")
        return Plan(status, actions=deletes, requeue_after=STOPPING_SECONDS)
    status = _still(observation, attempt, status)
    job = observation.job
    creates = (
        CreatePod(pod_name(job.metadata.name, attempt.number, index), pod_manifest(job, built, index))
        for index in attempt.missing
    )
    return Plan(status, actions=(*deletes, *creates), again=True)


def service(observation: Observation, attempt: Attempt) -> EnsureService:
    job = observation.job
    manifest = service_manifest(job, attempt.number, rendezvous.address(observation, attempt))
    return EnsureService(service_name(job.metadata.name), manifest)


def _address(observation: Observation, attempt: Attempt) -> str | None:
    """Of the rendezvous service, once it leads to this attempt's pod 0."""
    ready = (found for found in observation.services if found.attempt == attempt.number and found.cluster_ip)
    return next((found.cluster_ip for found in ready), None)


def has_service(observation: Observation, attempt: Attempt) -> bool:
    return attempt.nodes <= 1 or _address(observation, attempt) is not None


def _old(attempt: Attempt) -> tuple[PodView, ...]:
    return (*attempt.others, *(attempt.pods if attempt.ended else ()))


def _has_saved(attempt: Attempt) -> bool:
    return attempt.end is not None and attempt.end.reason in history.SAVED


def _waiting(attempt: Attempt) -> tuple[str, str]:
    if attempt.end is not None and attempt.end.reason != history.SUSPENDED:
        how = "was stopped" if attempt.end.reason in history.SAVED else "failed"
        return "Restarting", f"attempt {attempt.number} {how}: {attempt.end.message}"
    return "Pending", "the gang is about to be created"


def _describe(observation: Observation, status: TrainingJobStatus, reason: str, message: str) -> TrainingJobStatus:
    """Phase and conditions while there is no gang."""
    failed = bool(status.history) and status.history[-1].reason != history.SUSPENDED
    status = status.model_copy(update={"phase": Phase.RESTARTING if failed else Phase.PENDING})
    status = conditions.clear(observation, status, ConditionType.SUSPENDED, "Resumed", "spec.suspend is false")
    return conditions.put(observation, status, ConditionType.RUNNING, False, reason, message)


def _still(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> TrainingJobStatus:
    """The same, before an action. What hindered it the last time stays until it is done: trying again is no news."""
    before = status.condition(ConditionType.RUNNING)
    if before is not None and before.reason not in conditions.PATIENT:
        return _describe(observation, status, before.reason, before.message)
    return _describe(observation, status, *_waiting(attempt))
