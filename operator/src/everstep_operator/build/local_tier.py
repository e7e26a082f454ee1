"""The local tier of a pod: a volume that lives as long as the pod, and so outlives its workers and its containers."""

from __future__ import annotations

from typing import Any

from everstep_operator.api.checkpoint import LocalTier
from everstep_operator.api.quantities import quantity_bytes

VOLUME = "everstep-local"
PATH = "/var/run/everstep/local"


def mount(tier: LocalTier, pod_spec: dict[str, Any], trainer: dict[str, Any]) -> None:
    """Add the volume to the pod and mount it into the trainer. A template that uses its name or path is refused by the
    API server, which names what is there twice."""
    empty = {"sizeLimit": tier.size_limit} | ({"medium": "Memory"} if tier.medium == "Memory" else {})
    pod_spec["volumes"] = [*(pod_spec.get("volumes") or []), {"name": VOLUME, "emptyDir": empty}]
    trainer["volumeMounts"] = [*(trainer.get("volumeMounts") or []), {"name": VOLUME, "mountPath": PATH}]


def variables(tier: LocalTier) -> dict[str, str]:
    """The trainer keeps to the size by itself: beyond it a disk's volume would cost the pod, not the save."""
    return {"EVERSTEP_LOCAL_PATH": PATH, "EVERSTEP_LOCAL_BYTES": str(quantity_bytes(tier.size_limit))}
