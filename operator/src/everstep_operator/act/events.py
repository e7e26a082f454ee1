"""Events of a job, as `kubectl describe` lists them. The name tells what they say, so that no event is there twice."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from datetime import UTC, datetime

from everstep_operator.api import API_VERSION, CONTROLLER, KIND, TrainingJob
from everstep_operator.kube import ApiError, Kube
from everstep_operator.reconcile.plan import Event

log = logging.getLogger(__name__)

NOTE_LIMIT = 1024
"""The API server refuses longer notes."""


class Events:
    def __init__(self, kube: Kube, instance: str) -> None:
        self._kube = kube
        self._instance = instance[:128]

    async def emit(self, job: TrainingJob, events: Iterable[Event]) -> None:
        """Create those that do not exist yet. They are for people: a failure here must not hold up a recovery."""
        for event in events:
            log.log(logging.WARNING if event.type == "Warning" else logging.INFO, "%s: %s", event.reason, event.message)
            try:
                await self._create(job, event)
            except ApiError as error:
                if not error.already_exists:
                    log.warning("the event %s could not be written: %s", event.reason, error)

    async def _create(self, job: TrainingJob, event: Event) -> None:
        meta = job.metadata
        await self._kube.create(
            f"/apis/events.k8s.io/v1/namespaces/{meta.namespace}/events",
            {
                "metadata": {"name": event_name(job, event), "namespace": meta.namespace},
                "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "type": event.type,
                "reason": event.reason,
                "note": _shortened(event.message),
                "action": event.reason,
                "regarding": {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    "namespace": meta.namespace,
                    "name": meta.name,
                    "uid": meta.uid,
                },
                "reportingController": CONTROLLER,
                "reportingInstance": self._instance,
            },
        )


def event_name(job: TrainingJob, event: Event) -> str:
    digest = hashlib.sha256("\0".join((job.metadata.uid, event.reason, event.key)).encode()).hexdigest()
    return f"{job.metadata.name}.{digest[:16]}"


def _shortened(note: str) -> str:
    body = note.encode()
    return note if len(body) <= NOTE_LIMIT else body[: NOTE_LIMIT - 3].decode(errors="ignore") + "…"
