"""The rendezvous service: a stable address of pod 0 of the attempt in force, reachable before that pod is ready."""

from __future__ import annotations

from typing import Any

from everstep_operator.api import TrainingJob
from everstep_operator.build import names


def service_manifest(job: TrainingJob, attempt: int, address: str | None = None) -> dict[str, Any]:
    """`address`: the one to have again, since pods that stand know no other."""
    meta = job.metadata
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": names.service_name(meta.name),
            "namespace": meta.namespace,
            "labels": names.labels(meta.name, meta.uid, attempt),
            "ownerReferences": [job.owner_reference()],
        },
        "spec": {
            "type": "ClusterIP",
            **({"clusterIP": address} if address else {}),
            "publishNotReadyAddresses": True,
            "selector": names.service_selector(meta.uid, attempt),
            "ports": [
                {
                    "name": "rendezvous",
                    "protocol": "TCP",
                    "port": names.RENDEZVOUS_PORT,
                    "targetPort": names.RENDEZVOUS_PORT,
                }
            ],
        },
    }
