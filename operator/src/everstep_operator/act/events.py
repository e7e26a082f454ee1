"""Events of a job, as `kubectl describe` lists them. The name tells what they say, so that no event is there twice.

They are core/v1: kubectl describe sorts by lastTimestamp, which events.k8s.io/v1 forbids. It has whole seconds; within
one second kubectl keeps the order of the names, so these follow the course of an attempt.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from datetime import UTC, datetime

from everstep_operator.api import API_VERSION, CONTROLLER, KIND, Metadata
from everstep_operator.kube import ApiError, Kube, core_path
from everstep_operator.reconcile.plan import Event

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds for one event: what an attempt needs comes after it."""
MESSAGE_LIMIT = 1024
"""Bytes of a message; more is in the status."""
_BEGIN = ("GangCreated", "Running")
_END = ("GangFailed", "Suspended", "Succeeded", "Failed")


class Events:
    def __init__(self, kube: Kube, instance: str) -> None:
        self._kube = kube
        self._instance = instance[:128]

    async def emit(self, meta: Metadata, attempt: int, events: Iterable[Event], anew: bool = False) -> None:
        """Create those that do not exist yet. They are for people: a failure here must not hold up a recovery. `anew`:
        another process has most likely created, and logged, them all."""
        for event in events:
            if not anew:
                _log(event)
            try:
                await self._create(meta, attempt, event)
                if anew:
                    _log(event)
            except ApiError as error:
                if not error.already_exists:
                    log.warning("the event %s could not be written: %s", event.reason, error)
                if error.unanswered:
                    return  # the next one would wait as long

    async def _create(self, meta: Metadata, attempt: int, event: Event) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        await self._kube.request(
            "POST",
            core_path(meta.namespace, "events"),
            limit=PATIENCE,
            body={
                "metadata": {"name": event_name(meta, attempt, event), "namespace": meta.namespace},
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": 1,
                "type": event.type,
                "reason": event.reason,
                "message": _shortened(event.message),
                "involvedObject": {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    "namespace": meta.namespace,
                    "name": meta.name,
                    "uid": meta.uid,
                },
                "source": {"component": CONTROLLER},
                "reportingComponent": CONTROLLER,
                "reportingInstance": self._instance,
            },
        )


def _log(event: Event) -> None:
    log.log(logging.WARNING if event.type == "Warning" else logging.INFO, "%s: %s", event.reason, event.message)


def event_name(meta: Metadata, attempt: int, event: Event) -> str:
    digest = hashlib.sha256("\0".join((meta.uid, event.reason, event.key)).encode()).hexdigest()
    return f"{meta.name}.{attempt:06d}.{_stage(event.reason)}.{digest[:16]}"


def _stage(reason: str) -> int:
    """Of an attempt's course, in a digit."""
    rows = [*_BEGIN, None, *_END]
    return rows.index(reason if reason in rows else None)


def _shortened(message: str) -> str:
    body = message.encode()
    return message if len(body) <= MESSAGE_LIMIT else body[: MESSAGE_LIMIT - 3].decode(errors="ignore") + "…"
