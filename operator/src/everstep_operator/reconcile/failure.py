"""Whether the attempt in force has failed: a pod failed, is gone or on a lost node; it stalls; it starts too slowly."""

from __future__ import annotations

from datetime import timedelta

from everstep import failure as failure_record
from everstep_operator.api import Phase
from everstep_operator.build import pod_name
from everstep_operator.reconcile import classify
from everstep_operator.reconcile.attempt import Attempt
from everstep_operator.reconcile.classify import Cause
from everstep_operator.reconcile.observation import HeartbeatView, Observation, PodView

HEARTBEAT_SILENT = 15.0
"""Seconds without a beat after which a silent node is taken for lost: three beats of the library."""
MOST_LOGS = 8


def find(observation: Observation, attempt: Attempt) -> Cause | None:
    """The cause, or None while the attempt may still come to its end."""
    lost = _lost_nodes(observation, attempt)
    if lost is not None:
        return lost
    broken = [pod for pod in attempt.pods if classify.failed(pod)]
    gone = _gone(observation, attempt)
    if broken or gone:
        if not gone and _stopping(attempt, broken):
            return None
        logs = observation.results.logs
        return classify.first([*gone, *(classify.pod_failure(pod, logs.get(pod.name)) for pod in broken)])
    return _stalled(observation, attempt) or _start_too_slow(observation, attempt)


def unexplained(attempt: Attempt, cause: Cause) -> tuple[str, ...]:
    """Pods whose logs may tell the cause, where nothing else does: the first few that failed."""
    if cause.weight <= classify.ROOT:
        return ()
    silent = [
        pod
        for pod in attempt.pods
        if classify.failed(pod) and pod.container.terminated and failure_record.decode(pod.container.message) is None
    ]
    silent += [
        pod for pod in attempt.pods if (found := failure_record.decode(pod.container.message)) and found.peer_lost
    ]
    silent.sort(key=lambda pod: pod.container.finished.timestamp() if pod.container.finished else 0.0)
    return tuple(pod.name for pod in silent[:MOST_LOGS])


def beating(observation: Observation, attempt: Attempt) -> HeartbeatView | None:
    """The heartbeat, if it is this attempt's."""
    found = observation.stored.heartbeat
    return found if found is not None and found.heartbeat.attempt == attempt.number else None


def has_finished(observation: Observation, attempt: Attempt) -> bool:
    """Whether the library says that the training came to its end."""
    found = beating(observation, attempt)
    return found is not None and found.heartbeat.phase == "finished"


def _lost_nodes(observation: Observation, attempt: Attempt) -> Cause | None:
    found = beating(observation, attempt)
    if found is not None and found.beat_age < HEARTBEAT_SILENT:
        return None
    for node in observation.nodes:
        pods = [pod for pod in attempt.pods if pod.node == node.name and not pod.terminal]
        if pods and not node.healthy:
            return classify.node_lost(pods, node)
    return None


def _gone(observation: Observation, attempt: Attempt) -> list[Cause]:
    if not (attempt.recorded or (attempt.claimed and not attempt.pods)):
        return []
    if has_finished(observation, attempt) and not any(classify.failed(pod) for pod in attempt.pods):
        return []  # a pod that was done, and was cleared away
    job, gang = observation.job.metadata.name, observation.job.status.gang
    leaving = gang.leaving if gang is not None else None
    return [classify.pod_gone(pod_name(job, attempt.number, index), index, leaving) for index in attempt.missing]


def _stopping(attempt: Attempt, broken: list[PodView]) -> bool:
    """A pod is being deleted with grace: all ranks save the same step and stop, and that is not to be cut short."""
    leaving = any(pod.deleting and not pod.terminal and not classify.failed(pod) for pod in attempt.pods)
    return leaving and all(
        (found := failure_record.decode(pod.container.message)) is not None and found.stopped for pod in broken
    )


def _stalled(observation: Observation, attempt: Attempt) -> Cause | None:
    limit = observation.job.spec.failure_policy.stall_timeout_seconds
    found = beating(observation, attempt)
    if not limit or found is None or found.heartbeat.phase == "finished" or not attempt.pods:
        return None
    beat = found.heartbeat
    if found.beat_age >= limit:
        message = f"no heartbeat for {limit} s since step {beat.step}"
    elif beat.phase == "training" and found.step_age >= limit:
        message = f"no new step for {limit} s since step {beat.step}"
    else:
        return None
    return Cause("Stalled", message, step=beat.step, reasons=frozenset({"Stalled"}))


def _start_too_slow(observation: Observation, attempt: Attempt) -> Cause | None:
    limit = observation.job.spec.failure_policy.start_timeout_seconds
    status = observation.job.status
    gang = status.gang
    if (
        limit is None
        or status.phase is not Phase.STARTING
        or gang is None
        or gang.started is None
        or not attempt.recorded
    ):
        return None
    if gang.running is not None or observation.now - gang.started < timedelta(seconds=limit):
        return None
    waiting = f": {gang.waiting}" if gang.waiting else ""
    message = f"not all pods ran within {limit} s{waiting}"
    return Cause("StartTimeout", message[:1024], reasons=frozenset({"StartTimeout"}))
