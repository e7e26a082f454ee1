"""Plays scheduler and kubelet of one namespace on an API server without nodes: it binds pods to a node of its own, runs
each pod's trainer in a thread, and reports what a kubelet would report."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config, watch

from everstep.catalog import S3Access
from tests.trainers.lite import Job, Options, Run

Pod = Any
TICK = 0.25
"""Seconds after which it looks again at what it knows: something that it did may have met a write of somebody else."""


@dataclass
class Container:
    """One pod's running trainer."""

    pod: str
    uid: str
    environment: dict[str, str]
    run: Run
    log: Path
    thread: threading.Thread | None = None
    exit_code: int | None = None
    started: str = ""
    began: float = field(default_factory=time.monotonic)
    ended: float = float("inf")
    lost: bool = False
    """Its node is silent: nothing of it is reported any more."""

    @property
    def attempt(self) -> int:
        return self.run.job.attempt


@dataclass
class Kubelet:
    """`options` makes each run's options from its environment. All pods of the namespace end on one node."""

    kubeconfig: Path
    namespace: str
    access: S3Access
    options: Callable[[Job], Options]
    containers: dict[str, Container] = field(default_factory=dict)
    """By pod uid, all that ever ran."""

    def __post_init__(self) -> None:
        self.api = client.CoreV1Api(config.new_client_from_config(str(self.kubeconfig)))
        self.leases = client.CoordinationV1Api(self.api.api_client)
        self.node = f"node-{secrets.token_hex(4)}"
        self.nodes: list[str] = []
        self._stop = threading.Event()
        self._pods: dict[str, Pod] = {}
        self._knowing = threading.Lock()
        self._changed = threading.Event()
        self._watch = watch.Watch()
        self._watcher = threading.Thread(target=self._follow, name="kubelet's watch", daemon=True)
        self._loop = threading.Thread(target=self._run, name="kubelet", daemon=True)
        self._directory = tempfile.TemporaryDirectory()
        self.errors: list[Exception] = []

    def __enter__(self) -> Kubelet:
        self._join(self.node)
        self._watcher.start()
        self._loop.start()
        return self

    def _join(self, node: str) -> None:
        self.api.create_node({"metadata": {"name": node}, "spec": {}})
        self.nodes.append(node)
        self.set_ready(True, node)

    def lose_node(self) -> str:
        """The node goes silent with all that runs on it; new pods go to another. Returns the lost node."""
        lost, self.node = self.node, f"node-{secrets.token_hex(4)}"
        for container in self.running():
            container.run.kill.set()
            container.lost = True
        self._join(self.node)
        self.set_ready(False, lost)
        return lost

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watch.stop()
        self._changed.set()
        for container in self.containers.values():
            container.run.kill.set()
        self._loop.join()
        for container in self.containers.values():
            if container.thread is not None:
                container.thread.join(timeout=30)
        for node in self.nodes:
            with contextlib.suppress(client.ApiException):
                self.api.delete_node(node)
        self._directory.cleanup()
        assert not self.errors, self.errors

    def set_ready(self, ready: bool, node: str) -> None:
        condition = {"type": "Ready", "status": "True" if ready else "Unknown", "reason": "Test"}
        self.api.patch_node_status(node, {"status": {"conditions": [condition]}})

    def running(self) -> list[Container]:
        return [each for each in self.containers.values() if each.exit_code is None]

    def container(self, pod: str) -> Container:
        """The newest container of a pod of that name."""
        return [each for each in self.containers.values() if each.pod == pod][-1]

    def _follow(self) -> None:
        """Keep `_pods` as the namespace has them."""
        listing = self.api.list_namespaced_pod
        while not self._stop.is_set():
            with contextlib.suppress(client.ApiException, urllib3.exceptions.HTTPError):
                found = listing(self.namespace)
                self._pods = {pod.metadata.uid: pod for pod in found.items}
                self._changed.set()
                version = found.metadata.resource_version
                for event in self._watch.stream(listing, self.namespace, resource_version=version, timeout_seconds=60):
                    if self._stop.is_set() or event is None:
                        return
                    pod = event["object"]
                    if event["type"] == "DELETED":
                        with self._knowing:
                            self._pods.pop(pod.metadata.uid, None)
                    else:
                        self._know(pod, new=event["type"] == "ADDED")
                    self._changed.set()

    def _know(self, pod: Pod, *, new: bool = False) -> None:
        """The answer to a write may come before or after the watch tells of it, and even of the pod's end."""
        with self._knowing:
            known = self._pods.get(pod.metadata.uid)
            if new if known is None else int(known.metadata.resource_version) < int(pod.metadata.resource_version):
                self._pods[pod.metadata.uid] = pod

    def _run(self) -> None:
        while not self._stop.is_set():
            self._changed.wait(TICK)
            self._changed.clear()
            for pod in list(self._pods.values()):
                try:
                    self._sync(pod)
                except client.ApiException as error:
                    if error.status not in (404, 409):
                        self.errors.append(error)
                except Exception as error:  # noqa: BLE001 - shown when the test ends
                    if not self._stop.is_set():
                        self.errors.append(error)

    def _sync(self, pod: Pod) -> None:
        meta = pod.metadata
        container = self.containers.get(meta.uid)
        if (container is not None and container.lost) or pod.spec.node_name not in (None, *self.nodes):
            return
        if pod.status.phase in ("Succeeded", "Failed") and not meta.deletion_timestamp:
            return
        if container is None:
            if meta.deletion_timestamp:
                self._remove(pod)
            elif pod.spec.node_name is None:
                self._bind(pod)
            else:
                self._start(pod)
            return
        if meta.deletion_timestamp and not container.run.stop.is_set():
            container.run.stop.set()
            grace = float(meta.deletion_grace_period_seconds or 0)
            killer = threading.Timer(grace, container.run.kill.set)
            killer.daemon = True
            killer.start()
        if container.exit_code is not None:
            if pod.status.phase not in ("Succeeded", "Failed"):
                self._report_end(pod, container)  # volumes are still to be unmounted: the pod goes at the next look
            elif meta.deletion_timestamp:
                self._remove(pod)

    def _bind(self, pod: Pod) -> None:
        target = {"apiVersion": "v1", "kind": "Node", "name": self.node}
        body = {"metadata": {"name": pod.metadata.name}, "target": target}
        self.api.create_namespaced_pod_binding(pod.metadata.name, self.namespace, body, _preload_content=False)

    def _start(self, pod: Pod) -> None:
        spec = pod.spec.containers[0]
        environment = {item.name: item.value or "" for item in spec.env or []}
        log = Path(self._directory.name) / pod.metadata.uid
        environment["EVERSTEP_TERMINATION_LOG"] = str(log)
        job = Job.from_environment(environment)
        size = int(environment.get("PET_NNODES", "1"))
        run = Run(job, self.options(job), self.access, gang=lambda: self._present(job) >= size)
        container = Container(pod.metadata.name, pod.metadata.uid, environment, run, log, started=_now())
        self.containers[pod.metadata.uid] = container
        state = {"running": {"startedAt": container.started}}
        self._report(pod, "Running", state, ready=True)

        def work() -> None:
            try:
                code = run()
            except Exception:  # noqa: BLE001 - it left its record; the process would end with 1
                code = 1
            container.ended = time.monotonic()
            container.exit_code = 137 if run.kill.is_set() else code
            self._changed.set()

        container.thread = threading.Thread(target=work, name=container.pod, daemon=True)
        container.thread.start()

    def _present(self, job: Job) -> int:
        gang = [each for each in list(self.containers.values()) if each.run.job.uid == job.uid]
        return len({each.pod for each in gang if each.attempt == job.attempt})

    def _report_end(self, pod: Pod, container: Container) -> None:
        code = container.exit_code or 0
        ended = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "message": container.log.read_text() if container.log.exists() else "",
            "startedAt": container.started,
            "finishedAt": _now(),
        }
        self._report(pod, "Succeeded" if code == 0 else "Failed", {"terminated": ended}, ready=False)

    def _report(self, pod: Pod, phase: str, state: dict[str, Any], *, ready: bool) -> None:
        name = pod.spec.containers[0].name
        status = {
            "phase": phase,
            "podIP": "10.0.0.1",
            "startTime": self.containers[pod.metadata.uid].started,
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [
                {
                    "name": name,
                    "image": pod.spec.containers[0].image,
                    "imageID": "test",
                    "ready": ready,
                    "restartCount": 0,
                    "state": state,
                }
            ],
        }
        self._know(self.api.patch_namespaced_pod_status(pod.metadata.name, self.namespace, {"status": status}))

    def _remove(self, pod: Pod) -> None:
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.metadata.uid}}
        self.api.delete_namespaced_pod(pod.metadata.name, self.namespace, body=options, _preload_content=False)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
