"""Whether the attempt in force has failed: a pod failed, is gone or on a lost node; it stalls; it starts too slowly."""

from __future__ import annotations

from everstep import failure as failure_record
from everstep_operator.build import pod_name
from everstep_operator.reconcile import classify, rendezvous, stall, starting
from everstep_operator.reconcile.attempt import Attempt, own
from everstep_operator.reconcile.classify import Cause
from everstep_operator.reconcile.observation import HeartbeatView, Observation, PodView

HEARTBEAT_SILENT = 15.0
"""Seconds without a beat after which a silent node is taken for lost: three beats of the library."""
NO_STEP = 60.0
"""Seconds without a step after which one is, where steps are quicker than that."""
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
    return (
        rendezvous.moved(observation, attempt)
        or stall.find(observation, attempt, beating(observation, attempt))
        or starting.find(observation, attempt)
    )


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
    """Whether the library says that the training came to its end: of all its steps, where it knows how many, and in
    the worker group that holds the claim. An earlier one may have ended before a rank failed at its very end."""
    found, catalog = beating(observation, attempt), own(observation)
    if found is None or found.heartbeat.phase != "finished":
        return False
    beat = found.heartbeat
    claim = catalog.claim if catalog is not None else None
    if claim is not None and claim.attempt == attempt.number and beat.epoch < claim.epoch:
        return False
    return beat.total_steps is None or beat.step >= beat.total_steps


def _lost_nodes(observation: Observation, attempt: Attempt) -> Cause | None:
    alive = _shows_life(beating(observation, attempt))
    for node in observation.nodes:
        pods = [pod for pod in attempt.pods if pod.node == node.name and not pod.terminal]
        if pods and not node.healthy and (not alive or any(pod.deleting for pod in pods)):
            return classify.node_lost(pods, node)
    return None


def _shows_life(found: HeartbeatView | None) -> bool:
    """Rank 0 beats on when another rank's node is lost, but no step ends any more."""
    if found is None or found.beat_age >= HEARTBEAT_SILENT:
        return False
    beat = found.heartbeat
    return beat.phase != "training" or found.still < max(NO_STEP, 3 * (beat.seconds_per_step or 0))


def _gone(observation: Observation, attempt: Attempt) -> list[Cause]:
    if not (attempt.recorded or (attempt.claimed and not attempt.pods)):
        return []
    if has_finished(observation, attempt) and not any(classify.failed(pod) for pod in attempt.pods):
        return []  # a pod that was done, and was cleared away
    job, gang = observation.job.metadata.name, observation.job.status.gang
    leaving = gang.leaving if gang is not None else None
    return [classify.pod_gone(pod_name(job, attempt.number, index), index, leaving) for index in attempt.lost]


def _stopping(attempt: Attempt, broken: list[PodView]) -> bool:
    """A pod is being deleted with grace: all ranks save the same step and stop, and that is not to be cut short."""
    leaving = any(pod.deleting and not pod.terminal and not classify.failed(pod) for pod in attempt.pods)
    return leaving and all(
        (found := failure_record.decode(pod.container.message)) is not None and found.stopped for pod in broken
    )
