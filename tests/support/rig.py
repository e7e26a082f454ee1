"""One namespace with its operator, its kubelet and its bucket, and the questions that tests ask about it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import client, config

from dev.s3 import S3Endpoint
from everstep.catalog import Catalog, JobCatalog, Store, job_root, open_store
from tests.plugins.cluster import RunningCluster
from tests.support.kubelet import Kubelet
from tests.support.operator_process import OperatorProcess
from tests.support.waiting import wait_for
from tests.trainers.lite import Options

PATIENT = urllib3.Retry(5, backoff_factor=0.5, status_forcelist=(429, 503, 504), raise_on_status=False)
"""A question is asked again where the API server of a busy machine did not get to it."""


@dataclass
class Rig:
    """What a test works with."""

    cluster: RunningCluster
    namespace: str
    s3: S3Endpoint
    bucket: str
    directory: Path
    operator: OperatorProcess
    kubelet: Kubelet
    options: dict[int | str, Options] = field(default_factory=dict)
    """By the job's name, else by attempt; 0: all others."""
    endpoint: str = ""

    def __post_init__(self) -> None:
        configuration = client.Configuration()
        config.load_kube_config(str(self.cluster.kubeconfig), client_configuration=configuration)
        configuration.retries = PATIENT
        self.api = client.CustomObjectsApi(client.ApiClient(configuration))
        self.core = client.CoreV1Api(self.api.api_client)
        self.endpoint = self.endpoint or self.s3.url

    @contextmanager
    def black_hole(self) -> Iterator[str]:
        """An allowed endpoint that takes connections and never answers."""
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            document = yaml.safe_load(self.operator.profiles.read_text())
            document["profiles"].append({**document["profiles"][0], "name": "dead", "endpoint": url})
            self.operator.profiles.write_text(yaml.safe_dump(document))
            yield url

    def allow_bucket(self, name: str) -> None:
        """Let the profile allow one bucket more."""
        document = yaml.safe_load(self.operator.profiles.read_text())
        document["profiles"][0]["buckets"].append({"name": name})
        self.operator.profiles.write_text(yaml.safe_dump(document))

    def apply(self, name: str = "job", endpoint: str | None = None, **spec: Any) -> dict[str, Any]:
        """Create a job of two pods; `spec` adds to its spec."""
        storage = {"uri": f"s3://{self.bucket}/jobs", "endpoint": endpoint or self.endpoint, "region": self.s3.region}
        checkpoint = {"storage": storage, "interval": {"steps": 10}, **spec.pop("checkpoint", {})}
        body = {
            "apiVersion": "everstep.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "nodes": 2,
                "template": {"spec": {"containers": [{"name": "trainer", "image": "example.test/lite:1"}]}},
                "checkpoint": checkpoint,
                **spec,
            },
        }
        created: dict[str, Any] = self.api.create_namespaced_custom_object(
            "everstep.dev", "v1alpha1", self.namespace, "trainingjobs", body
        )
        return created

    def job(self, name: str = "job") -> dict[str, Any]:
        found: dict[str, Any] = self.api.get_namespaced_custom_object(
            "everstep.dev", "v1alpha1", self.namespace, "trainingjobs", name
        )
        return found

    def patch(self, body: dict[str, Any], name: str = "job") -> None:
        self.api.patch_namespaced_custom_object("everstep.dev", "v1alpha1", self.namespace, "trainingjobs", name, body)

    def delete(self, name: str = "job") -> None:
        self.api.delete_namespaced_custom_object("everstep.dev", "v1alpha1", self.namespace, "trainingjobs", name)

    def status(self, name: str = "job") -> dict[str, Any]:
        found: dict[str, Any] = self.job(name).get("status") or {}
        return found

    def until_phase(self, *phases: str, name: str = "job", seconds: float = 40) -> dict[str, Any]:
        try:
            wait_for(f"{name} is {phases}", lambda: self.status(name).get("phase") in phases, seconds)
        except AssertionError as error:
            status = yaml.safe_dump(self.status(name))
            pods = "\n".join(f"{pod.metadata.name} {pod.status.phase}" for pod in self.pods())
            raise AssertionError(f"{error}\n{status}\n{pods}\n{self.operator.tail()}") from None
        return self.status(name)

    def until_running(self, attempt: int, nodes: int = 2, seconds: float = 40) -> None:
        """Until all pods of an attempt train."""

        def trains() -> bool:
            return sum(each.attempt == attempt for each in self.kubelet.running()) == nodes

        try:
            wait_for(f"attempt {attempt} runs", trains, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{yaml.safe_dump(self.status())}\n{self.operator.tail()}") from None

    def pods(self) -> list[Any]:
        found: list[Any] = self.core.list_namespaced_pod(self.namespace).items
        return found

    def reasons(self) -> list[str]:
        """Reasons of the job's events."""
        found = self.core.list_namespaced_event(self.namespace).items
        return [event.reason for event in found]

    def exists(self, name: str = "job") -> bool:
        found = self.api.list_namespaced_custom_object("everstep.dev", "v1alpha1", self.namespace, "trainingjobs")
        return any(item["metadata"]["name"] == name for item in found["items"])

    def store(self, name: str = "job") -> Store:
        return open_store(job_root(f"s3://{self.bucket}/jobs", self.namespace, name), self.kubelet.access)

    def catalog(self, name: str = "job") -> Catalog:
        return JobCatalog(self.store(name)).require()


def write_profiles(directory: Path, s3: S3Endpoint, bucket: str, url: str) -> Path:
    """A profiles file that gives every namespace one bucket at `url`."""
    credentials = directory / "credentials"
    credentials.mkdir()
    (credentials / "accessKey").write_text(s3.access_key)
    (credentials / "secretKey").write_text(s3.secret_key)
    profile = {
        "name": "tests",
        "namespaces": ["*"],
        "endpoint": url,
        "buckets": [{"name": bucket}],
        "credentials": {"directory": "credentials"},
    }
    path = directory / "profiles.yaml"
    path.write_text(yaml.safe_dump({"profiles": [profile]}))
    return path
