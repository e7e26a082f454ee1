"""The variables of a trainer container: everstep's own, torchrun's and those of the S3 client.

torchrun reads `PET_…`, so that a plain `torchrun train.py` finds its gang. The rendezvous is c10d, which alone can
restart workers in place across nodes. Pod 0 hosts its store and reaches it by loopback; the others go through the
service's address, which needs neither DNS (a name asked for too early stays missing for the cache's time) nor, on
pod 0, a network that lets a pod reach itself by way of a service.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any

from everstep.catalog import job_root
from everstep_operator.api import TrainingJob
from everstep_operator.build import local_tier
from everstep_operator.build.launch import Launch
from everstep_operator.build.names import RENDEZVOUS_PORT

IN_PLACE_RESTARTS = 3
"""torchrun's restarts of the workers within an attempt; a matter of seconds, as pods and agents stay."""
RENDEZVOUS_SECONDS = 86_400
"""How long pods wait for their gang. Generous: it is the operator that decides when a start has failed."""
DEFAULT_GRACE = 30
SHUTDOWN_MARGIN = 5
"""Seconds between torchrun's SIGKILL of its workers and the kubelet's of torchrun."""

Variable = dict[str, Any]


def reserved(job: TrainingJob, launch: Launch, index: int) -> list[Variable]:
    """Variables that are the operator's alone."""
    meta, spec = job.metadata, job.spec
    policy = spec.checkpoint.model_dump(by_alias=True, exclude_none=True, exclude={"storage"}, mode="json")
    if spec.failure_policy.save_timeout_seconds:
        policy["saveTimeoutSeconds"] = spec.failure_policy.save_timeout_seconds
    hosts = index == 0 or launch.rendezvous is None
    host = "localhost" if launch.rendezvous is None or index == 0 else _bracketed(launch.rendezvous)
    local = spec.checkpoint.local
    conf = {"is_host": int(hosts), "join_timeout": RENDEZVOUS_SECONDS, "read_timeout": RENDEZVOUS_SECONDS}
    return [
        _variable("EVERSTEP_NAMESPACE", meta.namespace),
        _variable("EVERSTEP_JOB", meta.name),
        _variable("EVERSTEP_JOB_UID", meta.uid),
        _variable("EVERSTEP_ATTEMPT", launch.attempt),
        _variable("EVERSTEP_ROOT", job_root(spec.checkpoint.storage.uri, meta.namespace, meta.name)),
        _variable("EVERSTEP_RESUME_PATH", launch.resume_path),
        _variable("EVERSTEP_RESUME_STEP", "" if launch.resume_step is None else launch.resume_step),
        _variable("EVERSTEP_POLICY", json.dumps(policy, separators=(",", ":"))),
        *(_variable(name, value) for name, value in ({} if local is None else local_tier.variables(local)).items()),
        _variable("PET_NNODES", launch.nodes),
        _variable("PET_NPROC_PER_NODE", spec.proc_per_node),
        _variable("PET_RDZV_BACKEND", "c10d"),
        _variable("PET_RDZV_ID", f"{meta.uid}-{launch.attempt}"),
        _variable("PET_RDZV_ENDPOINT", f"{host}:{RENDEZVOUS_PORT}"),
        _variable("PET_RDZV_CONF", ",".join(f"{key}={value}" for key, value in conf.items())),
        {"name": "PET_LOCAL_ADDR", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]


def defaults(job: TrainingJob, grace: int) -> list[Variable]:
    """Variables that the template may set otherwise. `grace`: the pod's termination grace in seconds."""
    storage = job.spec.checkpoint.storage
    variables = [
        _variable("PET_MAX_RESTARTS", IN_PLACE_RESTARTS),
        _variable("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", max(1, grace - SHUTDOWN_MARGIN)),
        # torchrun's shared store outlives its workers: after a restart in place it gives their dead addresses
        _variable("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", 1),
    ]
    if storage.endpoint:
        variables.append(_variable("AWS_ENDPOINT_URL", storage.endpoint))
    if storage.region:  # boto3 reads the second, other clients the first
        variables += [_variable("AWS_REGION", storage.region), _variable("AWS_DEFAULT_REGION", storage.region)]
    return variables


def merge(fixed: list[Variable], ours: list[Variable], users: list[Variable]) -> list[Variable]:
    """Ours first, so that the template's values may refer to them as $(NAME); its names win but for the fixed ones."""
    taken = {variable["name"] for variable in fixed}
    users = [variable for variable in users if variable.get("name") not in taken]
    set_by_user = {variable.get("name") for variable in users}
    return [*fixed, *(variable for variable in ours if variable["name"] not in set_by_user), *users]


def _variable(name: str, value: object) -> Variable:
    return {"name": name, "value": str(value)}


def _bracketed(address: str) -> str:
    return f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
