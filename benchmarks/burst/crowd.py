"""Many jobs at once on an API server without nodes, a stand-in that calls their pods running, and who saw what when."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes import client, config, watch

from dev.s3 import S3Endpoint
from everstep_operator.api import GROUP, PLURAL, VERSION

Json = dict[str, Any]
NODES = 2
CRASHING = "crash-loop"
"""Its pods end with code 1 as soon as they would run."""
STRANDED = "dead-endpoint"
"""Its storage takes connections and never answers."""


@dataclass
class Seen:
    """Monotonic seconds at which each thing of a job was seen first."""

    created: float = 0.0
    fenced: float = 0.0
    pods: dict[str, float] = field(default_factory=dict)

    @property
    def gang(self) -> float:
        return max(self.pods.values()) if len(self.pods) >= NODES else 0.0


@dataclass
class Crowd:
    kubeconfig: Path
    namespace: str
    s3: S3Endpoint
    bucket: str
    seen: dict[str, Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # One client a use: the stand-in's and the watches' connections must not wait for each other.
        self.custom = client.CustomObjectsApi(self._client())
        self.pods = client.CoreV1Api(self._client())
        self._ended = threading.Event()

    def _client(self) -> Any:
        configuration = client.Configuration()
        config.load_kube_config(str(self.kubeconfig), client_configuration=configuration)
        configuration.connection_pool_maxsize = 16
        return client.ApiClient(configuration)

    def create(self, names: list[str], endpoints: dict[str, str]) -> None:
        """All of them as fast as eight clients can."""
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: self._create(name, endpoints.get(name, self.s3.url)), names))

    def _create(self, name: str, endpoint: str) -> None:
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "TrainingJob",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "nodes": NODES,
                "template": {"spec": {"containers": [{"name": "trainer", "image": "example.test/trainer:1"}]}},
                "checkpoint": {
                    "storage": {"uri": f"s3://{self.bucket}/jobs", "endpoint": endpoint, "region": self.s3.region}
                },
            },
        }
        self.seen[name] = Seen()
        self.custom.create_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, body)
        self.seen[name].created = time.monotonic()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Follow jobs and pods, and play the node, until the block ends."""
        with ThreadPoolExecutor(8, thread_name_prefix="node") as node:
            threads = [
                threading.Thread(target=self._follow_jobs, daemon=True),
                threading.Thread(target=self._follow_pods, args=(node,), daemon=True),
            ]
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                self._ended.set()
                for thread in threads:
                    thread.join(timeout=15)

    def _follow_jobs(self) -> None:
        listing = client.CustomObjectsApi(self._client()).list_namespaced_custom_object
        while not self._ended.is_set():
            for event in watch.Watch().stream(
                listing, GROUP, VERSION, self.namespace, PLURAL, timeout_seconds=10, _request_timeout=20
            ):
                job = event["object"]
                seen = self.seen.get(job["metadata"]["name"])
                if seen and not seen.fenced and (job.get("status") or {}).get("attempt"):
                    seen.fenced = time.monotonic()

    def _follow_pods(self, node: ThreadPoolExecutor) -> None:
        listing = client.CoreV1Api(self._client()).list_namespaced_pod
        begun: set[str] = set()
        while not self._ended.is_set():
            for event in watch.Watch().stream(listing, self.namespace, timeout_seconds=10, _request_timeout=20):
                pod = event["object"]
                job = (pod.metadata.labels or {}).get("everstep.dev/job", "")
                if job in self.seen:
                    self.seen[job].pods.setdefault(pod.metadata.name, time.monotonic())
                if event["type"] == "DELETED":
                    continue
                if pod.metadata.deletion_timestamp:
                    node.submit(self._remove, pod)
                elif pod.metadata.uid not in begun:
                    begun.add(pod.metadata.uid)
                    node.submit(self._run, pod, crash=job == CRASHING)

    def _run(self, pod: Any, *, crash: bool) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        running: Json = {"running": {"startedAt": now}}
        ended: Json = {"terminated": {"exitCode": 1, "reason": "Error", "startedAt": now, "finishedAt": now}}
        status = {
            "phase": "Failed" if crash else "Running",
            "podIP": "10.0.0.1",
            "startTime": now,
            "conditions": [{"type": "Ready", "status": str(not crash)}],
            "containerStatuses": [
                {
                    "name": pod.spec.containers[0].name,
                    "image": pod.spec.containers[0].image,
                    "imageID": "none",
                    "ready": not crash,
                    "restartCount": 0,
                    "state": ended if crash else running,
                }
            ],
        }
        with contextlib.suppress(client.ApiException):  # gone meanwhile
            self.pods.patch_namespaced_pod_status(pod.metadata.name, self.namespace, {"status": status})

    def _remove(self, pod: Any) -> None:
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.metadata.uid}}
        with contextlib.suppress(client.ApiException):
            self.pods.delete_namespaced_pod(pod.metadata.name, self.namespace, body=options, _preload_content=False)
