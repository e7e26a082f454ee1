"""From the API's JSON to the plain views that decisions are made on. Pure; what is missing or odd becomes a default."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, cast, get_args

from everstep_operator.api import GROUP, trainer_index
from everstep_operator.api.common import MAX_COUNT
from everstep_operator.build import names
from everstep_operator.reconcile.observation import (
    ConditionView,
    ContainerView,
    PodPhase,
    PodView,
    ServiceView,
)

Json = Mapping[str, Any]


def moment(text: str | None) -> datetime | None:
    """A time of the API as an aware datetime."""
    return datetime.fromisoformat(text) if text else None


def pod_view(pod: Json, job: str, uid: str) -> PodView | None:
    """None for a pod whose name is none of the job's: somebody's copy of one, labels and all.

    The name tells attempt and index, since nobody can edit it.
    """
    meta, status = pod["metadata"], pod.get("status") or {}
    attempt, index = names.read_pod_name(job, meta["name"]) or (0, 0)
    if not (0 < attempt <= MAX_COUNT and 0 <= index <= MAX_COUNT):
        return None
    phase = status.get("phase")
    return PodView(
        name=meta["name"],
        uid=meta["uid"],
        attempt=attempt,
        index=index,
        labelled=_has(meta, names.pod_labels(job, uid, attempt, index)),
        owned=bool(meta.get("ownerReferences")),
        phase=cast(PodPhase, phase if phase in get_args(PodPhase) else "Pending"),
        resource_version=meta.get("resourceVersion", ""),
        deleting=bool(meta.get("deletionTimestamp")),
        deletion_grace=meta.get("deletionGracePeriodSeconds") if meta.get("deletionTimestamp") else None,
        stop_by=moment(meta.get("deletionTimestamp")),
        node=pod.get("spec", {}).get("nodeName"),
        created=moment(meta.get("creationTimestamp")),
        reason=status.get("reason"),
        message=status.get("message"),
        conditions=tuple(_conditions(status.get("conditions") or [])),
        container=container_view(pod),
        annotations={
            key: value for key, value in (meta.get("annotations") or {}).items() if key.startswith(f"{GROUP}/")
        },
    )


def _has(meta: Json, labels: Mapping[str, str]) -> bool:
    return labels.items() <= (meta.get("labels") or {}).items()


def trainer_name(pod: Json) -> str | None:
    containers = pod.get("spec", {}).get("containers") or []
    told = (pod["metadata"].get("annotations") or {}).get(names.CONTAINER)
    if any(container.get("name") == told for container in containers):
        return cast(str, told)  # a webhook may have put a sidecar before it
    return containers[trainer_index(pod)].get("name") if containers else None


def container_view(pod: Json) -> ContainerView:
    name = trainer_name(pod)
    found = (s for s in pod.get("status", {}).get("containerStatuses") or [] if s.get("name") == name)
    status = next(found, None)
    if status is None:
        return ContainerView()
    state = status.get("state") or {}
    waiting, running, ended = state.get("waiting"), state.get("running"), state.get("terminated")
    restarts = int(status.get("restartCount") or 0)
    if ended:
        return ContainerView(
            exit_code=int(ended.get("exitCode") or 0),
            signal=ended.get("signal") or None,
            reason=ended.get("reason"),
            message=ended.get("message"),
            started=moment(ended.get("startedAt")),
            finished=moment(ended.get("finishedAt")),
            restarts=restarts,
        )
    if running:
        return ContainerView(running_since=moment(running.get("startedAt")), restarts=restarts)
    waiting = waiting or {}
    return ContainerView(
        waiting_reason=waiting.get("reason"), waiting_message=waiting.get("message"), restarts=restarts
    )


def service_view(service: Json, job: str, uid: str, applied: str | None = None) -> ServiceView:
    """`applied`: the resourceVersion that our own apply gave it. In that one, what stands beside our part of the
    selector is there to stay: a webhook puts it back each time."""
    meta, spec = service["metadata"], service.get("spec") or {}
    selector = spec.get("selector") or {}
    told = selector.get(names.ATTEMPT, "0")
    attempt = int(told) if told.isascii() and told.isdigit() else 0
    ports = [port.get("port") for port in spec.get("ports") or []]
    wanted = names.service_selector(uid, attempt)
    as_applied = applied is not None and meta.get("resourceVersion") == applied and wanted.items() <= selector.items()
    whole = (selector == wanted or as_applied) and names.RENDEZVOUS_PORT in ports
    kept = _has(meta, names.labels(job, uid, attempt)) and bool(meta.get("ownerReferences"))
    return ServiceView(
        name=meta["name"],
        uid=meta["uid"],
        cluster_ip=_address(spec.get("clusterIP")),
        attempt=attempt if whole and kept else 0,
    )


def _address(text: str | None) -> str:
    """A headless service says `None`, which is no address."""
    try:
        return str(ipaddress.ip_address(text or ""))
    except ValueError:
        return ""


def is_ready(node: Json) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or []
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


def _conditions(items: Iterable[Json]) -> Iterable[ConditionView]:
    for item in items:
        yield ConditionView(
            type=item.get("type", ""),
            status=item.get("status", "Unknown"),
            reason=item.get("reason") or "",
            message=item.get("message") or "",
            since=moment(item.get("lastTransitionTime")),
        )
