"""A stored job that this operator cannot read: it says so on the job and does nothing else.

The object may come from another version's CRD, or from somebody who wrote around the schema. Its pods go on, nothing is
started or removed, and the next edit that can be read sets the condition right. Who deletes it is not made to mend it
first: it goes, and its checkpoints stay, whatever its deletionPolicy says, since what else it says is not understood.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from everstep_operator.act.events import Events
from everstep_operator.api import CONTROLLER, ConditionType, InvalidJobError, Metadata
from everstep_operator.build.names import FINALIZER
from everstep_operator.kube import ApiError, Kube, job_path
from everstep_operator.reconcile.plan import Event

log = logging.getLogger(__name__)

REASON = "InvalidSpec"
RETAINED = "CheckpointsRetained"


async def tell(kube: Kube, events: Events, error: InvalidJobError) -> None:
    """The condition Valid=False, and one event for each text; nothing where both stand already."""
    body = error.body
    if _part(body, "spec").get("managedBy") not in (None, CONTROLLER):
        return
    meta = Metadata.model_validate(body["metadata"])
    if meta.deletion_timestamp is not None:
        await _let_go(kube, events, meta, error)
        return
    message = f"the job cannot be read, so nothing is done about it and its pods: {error}"[:4096]
    before = _conditions(body)
    old = next((item for item in before if item.get("type") == ConditionType.VALID), {})
    if (old.get("status"), old.get("reason"), old.get("message")) == ("False", REASON, message):
        return
    log.error("%s", message)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {
        "type": ConditionType.VALID.value,
        "status": "False",
        "reason": REASON,
        "message": message,
        "lastTransitionTime": old["lastTransitionTime"] if old.get("status") == "False" else now,
        "observedGeneration": meta.generation,
    }
    others = [item for item in before if item.get("type") != ConditionType.VALID]
    change = {
        "metadata": {"resourceVersion": meta.resource_version},
        "status": {"conditions": sorted([*others, condition], key=lambda item: str(item.get("type")))},
    }
    try:
        await kube.patch(job_path(meta.namespace, meta.name, "status"), change)
    except ApiError as refusal:
        # Changed meanwhile: its event brings it back. Refused: the log and the event have to do.
        log.warning("the condition could not be written: %s", refusal)
        if refusal.conflict or refusal.not_found or refusal.transient:
            return
    await events.emit(meta, 0, [Event("Warning", REASON, message, f"{meta.generation}")])


async def _let_go(kube: Kube, events: Events, meta: Metadata, error: InvalidJobError) -> None:
    """Nothing of ours holds the job any longer. First the event: nobody could be told afterwards."""
    if FINALIZER not in meta.finalizers:
        return  # its pods are the garbage collector's, as those of any job whose checkpoints stay
    uri = _part(_part(_part(error.body, "spec"), "checkpoint"), "storage").get("uri")
    where = f" under {str(uri).rstrip('/')}/{meta.namespace}/{meta.name}/" if uri else ""
    message = f"the job is deleted and cannot be read, so its checkpoints stay{where}: {error}"
    await events.emit(meta, 0, [Event("Warning", RETAINED, message)])
    left = [each for each in meta.finalizers if each != FINALIZER]
    change = {"metadata": {"resourceVersion": meta.resource_version, "finalizers": left}}
    try:
        await kube.patch(job_path(meta.namespace, meta.name), change)
    except ApiError as refusal:
        if not (refusal.conflict or refusal.not_found):  # changed meanwhile: its event brings it back
            raise


def _part(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = body.get(name)
    return found if isinstance(found, Mapping) else {}


def _conditions(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = _part(body, "status").get("conditions")
    return [dict(item) for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []
