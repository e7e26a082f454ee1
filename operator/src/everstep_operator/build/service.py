"""The rendezvous service: a stable address of pod 0 of the attempt in force, reachable before that pod is ready."""

from __future__ import annotations

from typing import Any

from everstep_operator.api import TrainingJob
from everstep_operator.build import names
from everstep_operator.build.pod import labels


def service_manifest(job: TrainingJob, attempt: int, address: str | None = None) -> dict[str, Any]:
    """`address`: the one to have again, since pods that stand know no other."""
    own = labels(job, attempt)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": names.service_name(job.metadata.name),
            "namespace": job.metadata.namespace,
            "labels": own,
            "ownerReferences": [job.owner_reference()],
        },
        "spec": {
            "type": "ClusterIP",
            **({"clusterIP": address} if address else {}),
            "publishNotReadyAddresses": True,
            "selector": {names.JOB_UID: job.metadata.uid, names.ATTEMPT: str(attempt), names.INDEX: "0"},
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
