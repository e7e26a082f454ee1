"""What the pods of a job said and went through, kept although the pods are deleted: one follower a pod, one watch."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config, watch

from everstep_operator.build import names


@dataclass(frozen=True)
class Labels:
    """Which labels tell whose pod it is, of which attempt, and which of the gang."""

    job: str = names.JOB
    attempt: str = names.ATTEMPT
    """Where a pod has none, it is of attempt 0."""
    index: str = names.INDEX


@dataclass(frozen=True)
class Line:
    """A log line; `at` is the container runtime's stamp, seconds since the epoch."""

    at: float
    text: str


@dataclass
class Pod:
    """`stamps` tells when the API server's watch first showed something: added, scheduled, running, failed, deleted."""

    name: str
    uid: str
    attempt: int
    index: int
    environment: dict[str, str]
    address: str = ""
    phase: str = ""
    stamps: dict[str, float] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    follower: threading.Thread | None = None

    def evidence(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "attempt": self.attempt,
            "index": self.index,
            "environment": self.environment,
            "stamps": self.stamps,
            "lines": [[line.at, line.text] for line in self.lines],
        }


class Followers:
    """`with Followers(kubeconfig, namespace, job) as followers:`; `pods` by uid, in the order in which they came."""

    def __init__(
        self, kubeconfig: Path, namespace: str, job: str, container: str = "trainer", labels: Labels | None = None
    ) -> None:
        self.namespace, self.job, self.container = namespace, job, container
        self.labels = labels or Labels()
        self.core = client.CoreV1Api(config.new_client_from_config(str(kubeconfig)))
        self.pods: dict[str, Pod] = {}
        self.changed = threading.Condition()
        self._stop = threading.Event()
        self._watch = watch.Watch()
        self._thread = threading.Thread(target=self._run, name=f"watch {job}", daemon=True)

    def __enter__(self) -> Followers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watch.stop()
        for pod in list(self.pods.values()):
            if pod.follower is not None:
                pod.follower.join(5)

    def until(self, what: str, check: Callable[[], Any], seconds: float) -> Any:
        """Wait for a truthy answer, asked anew after each line and each change of a pod."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while not (found := check()):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"{self.job}: not within {seconds:.0f} s: {what}\n{self.tails()}")
                self.changed.wait(min(left, 1))
        return found

    def of_attempt(self, attempt: int) -> list[Pod]:
        return [pod for pod in list(self.pods.values()) if pod.attempt == attempt]

    def at(self, address: str) -> Pod:
        """The newest pod with an address."""
        return next(pod for pod in reversed(list(self.pods.values())) if pod.address == address)

    def tails(self, lines: int = 12) -> str:
        parts = []
        for pod in list(self.pods.values()):
            parts += [f"-- {pod.name} {pod.phase} {pod.stamps}", *(line.text for line in pod.lines[-lines:])]
        return "\n".join(parts)

    def _run(self) -> None:
        selector = f"{self.labels.job}={self.job}"
        while not self._stop.is_set():
            with contextlib.suppress(client.ApiException, urllib3.exceptions.HTTPError):
                listing = self.core.list_namespaced_pod
                found = listing(self.namespace, label_selector=selector)
                self._forget({pod.metadata.uid for pod in found.items})
                for pod in found.items:
                    self._see("ADDED", pod)
                version = found.metadata.resource_version  # a watch without one would miss what went before it began
                for event in self._watch.stream(
                    listing, self.namespace, label_selector=selector, resource_version=version, timeout_seconds=60
                ):
                    if self._stop.is_set() or event is None:
                        break
                    self._see(event["type"], event["object"])

    def _forget(self, there: set[str]) -> None:
        """Pods that went between two watches."""
        with self.changed:
            for uid, pod in self.pods.items():
                if uid not in there:
                    pod.stamps.setdefault("deleted", time.time())
            self.changed.notify_all()

    def _see(self, kind: str, seen: Any) -> None:
        now = time.time()
        with self.changed:
            pod = self.pods.get(seen.metadata.uid)
            if pod is None:
                pod = self.pods[seen.metadata.uid] = self._new(seen)
                pod.stamps["added"] = now
            pod.address = seen.status.pod_ip or pod.address
            pod.phase = seen.status.phase
            if seen.spec.node_name:
                pod.stamps.setdefault("scheduled", now)
            if seen.metadata.deletion_timestamp is not None:
                pod.stamps.setdefault("deleting", now)
            if kind == "DELETED":
                pod.stamps.setdefault("deleted", now)
            state = next((s.state for s in seen.status.container_statuses or [] if s.name == self.container), None)
            began = state is not None and (state.running is not None or state.terminated is not None)
            if state is not None and state.running is not None:
                pod.stamps.setdefault("running", now)
            if state is not None and state.terminated is not None:
                pod.stamps.setdefault("ended", now)
            if began and pod.follower is None:
                pod.follower = threading.Thread(target=self._follow, args=(pod,), name=pod.name, daemon=True)
                pod.follower.start()
            self.changed.notify_all()

    def _new(self, seen: Any) -> Pod:
        container = next(c for c in seen.spec.containers if c.name == self.container)
        environment = {variable.name: variable.value or "" for variable in container.env or []}
        labels = seen.metadata.labels
        attempt, index = int(labels.get(self.labels.attempt, 0)), int(labels[self.labels.index])
        return Pod(seen.metadata.name, seen.metadata.uid, attempt, index, environment)

    def _follow(self, pod: Pod) -> None:
        with contextlib.suppress(client.ApiException, urllib3.exceptions.HTTPError):
            stream = self.core.read_namespaced_pod_log(
                pod.name, self.namespace, container=self.container, follow=True, timestamps=True, _preload_content=False
            )
            rest = b""
            for chunk in stream.stream(amt=None):  # it is urllib3's response
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    self._line(pod, line.decode(errors="replace"))

    def _line(self, pod: Pod, text: str) -> None:
        stamp, _, rest = text.partition(" ")
        with self.changed:
            pod.lines.append(Line(_seconds(stamp), rest))
            self.changed.notify_all()


def _seconds(stamp: str) -> float:
    """Of an RFC 3339 stamp in UTC with nanoseconds."""
    head, _, fraction = stamp.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{head}+00:00").timestamp() + float(f"0.{fraction or 0}")
