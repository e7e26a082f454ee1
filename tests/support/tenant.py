"""A user of a namespace: what they type, with the rights of the built-in role `edit`, and what they then read."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config

from dev.s3 import S3Endpoint
from everstep.catalog import Catalog, JobCatalog, S3Access, job_root, open_store
from everstep_operator.api import GROUP, PLURAL, VERSION
from tests.support.installed import SECRET, Installed
from tests.support.waiting import wait_for

Json = dict[str, Any]
ENDED = ("Succeeded", "Failed")
RESTRICTED: Json = {
    "terminationGracePeriodSeconds": 10,
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
}
LOCKED_DOWN: Json = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


class RefusedError(Exception):
    """kubectl refused; the text is its own."""


@dataclass
class Tenant:
    operator: Installed
    namespace: str
    s3: S3Endpoint
    bucket: str
    image: str
    """Of the torch-free trainer."""
    kubeconfig: Path
    made: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        api = config.new_client_from_config(str(self.kubeconfig))
        self.jobs = client.CustomObjectsApi(api)
        self.core = client.CoreV1Api(api)

    # What they write

    def job(self, name: str, *arguments: str, nodes: int = 2, **spec: Any) -> Json:
        """A TrainingJob of the torch-free trainer; `spec` replaces sections, but adds to `checkpoint`."""
        storage = {"uri": f"s3://{self.bucket}/jobs", "endpoint": self.s3.url, "region": self.s3.region}
        checkpoint = {"storage": {**storage, "secretName": SECRET}, "interval": {"steps": 10}, "keepLast": 3}
        checkpoint |= spec.pop("checkpoint", {})
        container = {"name": "trainer", "image": self.image, "args": list(arguments), "securityContext": LOCKED_DOWN}
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "TrainingJob",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "nodes": nodes,
                "template": {"spec": {**RESTRICTED, "containers": [container]}},
                "checkpoint": checkpoint,
                "failurePolicy": {"backoff": {"initialSeconds": 1, "maxSeconds": 2}},
                **spec,
            },
        }

    def apply(self, manifest: Json) -> str:
        """kubectl apply; returns what it prints. Raises RefusedError."""
        name = manifest["metadata"]["name"]
        if manifest["kind"] == "TrainingJob" and name not in self.made:
            self.made.append(name)
        return self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def run(self, name: str, *arguments: str, **spec: Any) -> None:
        self.apply(self.job(name, *arguments, **spec))

    def patch(self, name: str, **spec: Any) -> None:
        self.kubectl("patch", PLURAL, name, "--type=merge", f"--patch={json.dumps({'spec': spec})}")

    def delete(self, name: str) -> None:
        self.kubectl("delete", PLURAL, name, "--timeout=60s")

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Raises RefusedError."""
        program = self.operator.cluster.kubectl_path
        command = [program, f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True)
        if done.returncode != 0:
            raise RefusedError(done.stderr.strip())
        return done.stdout + done.stderr

    # What they read

    def get(self, name: str) -> Json:
        found: Json = self.jobs.get_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, name)
        return found

    def status(self, name: str) -> Json:
        found: Json = self.get(name).get("status") or {}
        return found

    def condition(self, name: str, kind: str) -> Json:
        """Empty where it was never set."""
        found = (each for each in self.status(name).get("conditions", []) if each["type"] == kind)
        return next(found, {})

    def describe(self, name: str) -> str:
        return self.kubectl("describe", PLURAL, name)

    def row(self, name: str) -> list[str]:
        """The cells of `kubectl get tj NAME`."""
        return self.kubectl("get", PLURAL, name, "--no-headers").split()

    def events(self, name: str) -> list[Json]:
        """Of the job, oldest first, as kubectl describe orders them."""
        uid = self.get(name)["metadata"]["uid"]
        found = self.core.list_namespaced_event(self.namespace, field_selector=f"involvedObject.uid={uid}")
        items: list[Json] = self.core.api_client.sanitize_for_serialization(found)["items"]
        return sorted(items, key=lambda item: item.get("lastTimestamp") or "")

    def told(self, name: str, reason: str) -> str:
        """The messages of the job's events of that reason, a line each. They follow the status: one is waited for."""

        def messages() -> list[str]:
            return [each["message"] for each in self.events(name) if each["reason"] == reason]

        return "\n".join(wait_for(f"an event {reason} of {name}", messages, 10))

    def pods(self, name: str) -> dict[str, Json]:
        """The job's pods by name, of whichever attempt."""
        found = self.core.list_namespaced_pod(self.namespace, label_selector=f"{GROUP}/job={name}")
        items: list[Json] = self.core.api_client.sanitize_for_serialization(found)["items"]
        return {pod["metadata"]["name"]: pod for pod in items}

    def catalog(self, name: str) -> Catalog:
        return self.register(name).require()

    def register(self, name: str) -> JobCatalog:
        access = S3Access(self.s3.url, self.s3.region, self.s3.access_key, self.s3.secret_key)
        return JobCatalog(open_store(job_root(f"s3://{self.bucket}/jobs", self.namespace, name), access))

    def keys(self, name: str) -> list[str]:
        """Everything that stands in the bucket below the job's root, relative to it."""
        return sorted(info.key for info in self.register(name).store.list(""))

    def steps(self, name: str) -> list[int]:
        """The committed steps."""
        return [entry.step for entry in self.catalog(name).live()]

    # What they wait for

    def until(self, name: str, found: Callable[[Json], Any], what: str, seconds: float = 60) -> Json:
        """The status once `found` is true of it; fails with everything that is known of the job."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status(name)
            if found(status):
                return status
            assert time.monotonic() < deadline, f"{name}: after {seconds:g} s not {what}\n{self.about(name)}"
            time.sleep(0.2)

    def until_phase(self, name: str, *phases: str, seconds: float = 60) -> Json:
        def there(status: Json) -> bool:
            phase = status.get("phase")
            assert phase in phases or phase not in ENDED, f"{name} has ended as {phase}\n{self.about(name)}"
            return phase in phases

        return self.until(name, there, " or ".join(phases), seconds)

    def until_condition(self, name: str, kind: str, status: str, reason: str, seconds: float = 60) -> str:
        """The message of the condition once it is so."""
        wanted = {"type": kind, "status": status, "reason": reason}

        def there(now: Json) -> bool:
            return any(wanted.items() <= each.items() for each in now.get("conditions", []))

        self.until(name, there, f"{kind}={status} {reason}", seconds)
        message: str = self.condition(name, kind)["message"]
        return message

    def until_step(self, name: str, step: int, attempt: int = 1, seconds: float = 60) -> Json:
        """Until an attempt has committed that step."""

        def there(status: Json) -> bool:
            last = status.get("lastCheckpoint") or {}
            return status.get("attempt") == attempt and last.get("step", 0) >= step and last["attempt"] == attempt

        return self.until(name, there, f"at step {step} in attempt {attempt}", seconds)

    def about(self, name: str) -> str:
        """For the message of a test that fails."""
        return f"{self.describe(name)}\n{self.kubectl('get', 'pods', '-o', 'wide')}\n{self.operator.tail()}"

    # What is taken away after a test

    def clear(self) -> None:
        for name in self.made:
            self.kubectl("delete", PLURAL, name, "--ignore-not-found", "--timeout=60s")
        self.made.clear()


def tenants(operator: Installed, s3: S3Endpoint, bucket: str, image: str, directory: Path) -> Iterator[Tenant]:
    """One for each namespace of a release."""
    for namespace in operator.namespaces:
        cluster = operator.cluster
        cluster.apply(yaml.safe_dump_all(_user(namespace)))
        path = cluster.service_account_kubeconfig(directory / namespace, namespace, "user")
        yield Tenant(operator, namespace, s3, bucket, image, path)


def _user(namespace: str) -> list[Json]:
    """A ServiceAccount with the built-in role `edit`, which the chart extends to TrainingJobs."""
    rbac = "rbac.authorization.k8s.io"
    metadata = {"name": "user", "namespace": namespace}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "edit"},
            "subjects": [{"kind": "ServiceAccount", "name": "user", "namespace": namespace}],
        },
    ]
