"""One pod of a gang: the user's template with a name, labels, an owner and the trainer's variables.

It adds nothing that Pod Security's `restricted` level would refuse, and leaves everything else as the template says.
"""

from __future__ import annotations

import copy
from typing import Any

from everstep_operator.api import TrainingJob, trainer_index
from everstep_operator.build import environment, fingerprint, local_tier, names
from everstep_operator.build.launch import Launch


def pod_manifest(job: TrainingJob, launch: Launch, index: int) -> dict[str, Any]:
    """The manifest of the pod `{job}-{attempt}-{index}`."""
    template = copy.deepcopy(job.spec.template)
    meta = template.get("metadata") or {}
    spec = template.get("spec") or {}
    name = names.pod_name(job.metadata.name, launch.attempt, index)
    spec.pop("subdomain", None)
    spec |= {"restartPolicy": "Never", "hostname": name}
    _equip(job, launch, index, spec)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": job.metadata.namespace,
            "labels": {
                **(meta.get("labels") or {}),
                **names.pod_labels(job.metadata.name, job.metadata.uid, launch.attempt, index),
            },
            "annotations": {
                **(meta.get("annotations") or {}),
                **launch.annotations(),
                names.CONTAINER: spec["containers"][trainer_index(template)]["name"],
                names.SPEC: fingerprint.write(job.spec),
            },
            "ownerReferences": [job.owner_reference()],
        },
        "spec": spec,
    }


def _equip(job: TrainingJob, launch: Launch, index: int, spec: dict[str, Any]) -> None:
    trainer = spec["containers"][trainer_index(job.spec.template)]
    grace = spec.get("terminationGracePeriodSeconds")
    trainer["env"] = environment.merge(
        environment.reserved(job, launch, index),
        environment.defaults(job, environment.DEFAULT_GRACE if grace is None else grace),
        trainer.get("env") or [],
    )
    # A record in the termination message wins; without one, the log's end says more than "exit code 1".
    trainer.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
    if job.spec.checkpoint.local is not None:
        local_tier.mount(job.spec.checkpoint.local, spec, trainer)
    secret = job.spec.checkpoint.storage.secret_name
    if secret:  # first: of equal names the last source wins, and that is to be the template's
        trainer["envFrom"] = [{"secretRef": {"name": secret}}, *(trainer.get("envFrom") or [])]
