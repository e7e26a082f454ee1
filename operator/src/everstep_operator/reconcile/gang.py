"""The pods of the attempt in force: what missing ones are made of, how many run, what the others wait for."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from everstep.catalog import job_root, resume_point
from everstep_operator.api import TrainingJobStatus
from everstep_operator.api.status import Fence, Gang, Leaving, ResumedFrom
from everstep_operator.build import Launch
from everstep_operator.build.names import pod_labels
from everstep_operator.reconcile.attempt import Attempt, launched_with, own
from everstep_operator.reconcile.observation import Observation, PodView
from everstep_operator.reconcile.plan import MarkPod

_QUIET = ("ContainerCreating", "PodInitializing", "PodScheduled")
_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_FRESH = timedelta(seconds=2)


def root(observation: Observation) -> str:
    job = observation.job
    return job_root(job.spec.checkpoint.storage.uri, job.metadata.namespace, job.metadata.name)


def launch(observation: Observation, attempt: Attempt) -> Launch | None:
    """What the attempt's missing pods are built with: what their siblings were, else what the fenced catalog says.

    Nothing can be committed between the fence and the first claim, so a later reading of it gives the same.
    """
    standing = launched_with(attempt.pods)
    if standing is not None:
        return standing
    catalog = own(observation)
    if catalog is None or catalog.attempt != attempt.number:
        return None
    point = resume_point(catalog)
    return Launch(
        attempt=attempt.number,
        nodes=attempt.nodes,
        epoch=catalog.epoch,
        generation=catalog.generation,
        resume_path=point.uri(root(observation)) if point else "",
        resume_step=point.step if point else None,
    )


def describe(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> TrainingJobStatus:
    """The status with the attempt's number, fence, resume point and pods, once all of these have existed."""
    if not attempt.launched or attempt.ended:
        return status
    new = attempt.number != observation.job.status.attempt
    before = None if new else status.gang
    built = launched_with(attempt.pods)
    update: dict[str, object] = {"attempt": attempt.number, "nodes": len(attempt.pods)}
    if new and built is not None:
        update["fence"] = Fence(attempt=attempt.number, epoch=built.epoch, generation=built.generation)
        update["resumed_from"] = (
            ResumedFrom(step=built.resume_step or 0, location=built.resume_path) if built.resume_path else None
        )
    started = before.started if before else None
    running = before.running if before else None
    if started is None:
        started = _moment(observation.now, [pod.created for pod in attempt.pods])
    if running is None and not attempt.lost and all(has_run(pod) for pod in attempt.pods):
        running = _moment(observation.now, [pod.container.running_since for pod in attempt.pods])
    count = sum(pod.container.running_since is not None for pod in attempt.pods)
    gang = Gang(
        summary=f"{count} of {attempt.nodes} running",
        nodes=attempt.nodes,
        waiting=_steadied(before.waiting if before else None, attempt) if running is None else None,
        succeeded=sorted(_succeeded(observation, attempt)) or None,
        leaving=(before.leaving if before else None) or _leaving(attempt),
        started=started,
        running=running,
    )
    update |= {"gang": gang, "start_time": status.start_time or started}
    return status.model_copy(update=update)


def _succeeded(observation: Observation, attempt: Attempt) -> frozenset[int]:
    """A gang with a heartbeat needs no record: that says when the training is over."""
    if observation.stored.heartbeat is not None:
        return attempt.succeeded
    return attempt.succeeded | {pod.index for pod in attempt.pods if pod.phase == "Succeeded" and not pod.deleting}


def marks(observation: Observation, attempt: Attempt) -> tuple[MarkPod, ...]:
    """What makes pods of the gang found again that somebody took labels from: they go on, so they stay the job's."""
    meta = observation.job.metadata
    return tuple(
        MarkPod(pod.name, pod.resource_version, pod_labels(meta.name, meta.uid, pod.attempt, pod.index), not pod.owned)
        for pod in attempt.pods
        if not (pod.labelled and pod.owned) and not (pod.terminal or pod.deleting)
    )


def waiting(attempt: Attempt) -> tuple[str, str] | None:
    """Reason and sentence of the first pod that cannot start; None where all is as it should be."""
    return next(_waits(attempt), None)


def _waits(attempt: Attempt) -> Iterator[tuple[str, str]]:
    for pod in attempt.pods:
        scheduled = pod.condition("PodScheduled")
        who = f"pod {pod.index} ({pod.name})"
        if pod.phase == "Pending" and scheduled is not None and scheduled.status == "False":
            yield scheduled.reason or "Unschedulable", f"{who}: {scheduled.message or 'not scheduled'}"[:1024]
            continue
        reason = pod.container.waiting_reason
        if reason and reason not in _QUIET:
            word = "ImagePullBackOff" if reason in _IMAGE else reason
            yield word, f"{who}: {reason}: {pod.container.waiting_message or ''}".rstrip(": ")[:1024]


def _leaving(attempt: Attempt) -> Leaving | None:
    """Remembered, because a pod that is gone cannot be asked any more why it went."""
    for pod in attempt.pods:
        if pod.deleting:
            target = pod.condition("DisruptionTarget")
            told = target if target is not None and target.status == "True" else None
            reason = (told.reason or "DisruptionTarget")[:256] if told else None
            message = told.message[:1024] if told else None
            return Leaving(pod=pod.name, node=pod.node, reason=reason, message=message or None)
    return None


def _steadied(before: str | None, attempt: Attempt) -> str | None:
    """What an event has told stays while it is so, though another pod waits for the same by now; and a kubelet that
    cannot pull an image alternates between two messages: the first one stays."""
    waits = waiting(attempt)
    if waits is None:
        return None
    text = waits[1]
    if before is not None and (waits[0], before) in _waits(attempt):
        return before
    same = before is not None and before.split(":")[0] == text.split(":")[0]
    return before if same and before and waits[0] == "ImagePullBackOff" and "Image" in before else text


def has_run(pod: PodView) -> bool:
    return pod.container.running_since is not None or pod.container.terminated or pod.phase == "Succeeded"


def _moment(now: datetime, stamps: list[datetime | None]) -> datetime:
    """When the last of several things happened: now, unless the stamps (whole seconds) say that it was long ago."""
    known = [stamp for stamp in stamps if stamp is not None]
    latest = max(known, default=now)
    return now if now - latest < _FRESH else latest
