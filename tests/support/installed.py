"""The operator as a user installs it: from its chart, in its own pod, with no more rights than its ServiceAccount has.

Each release watches only the namespaces that it was made with, so that test runs which share a cluster do not meet.
Those namespaces enforce Pod Security's `restricted` level, and hold the Secret that jobs name.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dev import build
from dev.cluster import file_locked
from dev.paths import REPOSITORY, instances
from dev.s3 import S3Endpoint
from everstep_operator.api import PLURAL
from tests.plugins.cluster import RunningCluster
from tests.support.helm import CHART
from tests.support.waiting import wait_for

CRD = REPOSITORY / "crds" / "trainingjobs.everstep.dev.yaml"
SECRET = "s3-credentials"
SELECTOR = "app.kubernetes.io/component=operator"
QUICK = {"pollSeconds": 1, "pollMaxSeconds": 5, "progressSeconds": 1, "logFormat": "console"}
"""Settings for tests that wait for things."""


@dataclass
class Installed:
    """One release of the chart; its own namespace has its name."""

    cluster: RunningCluster
    release: str
    namespaces: tuple[str, ...]
    values: dict[str, Any] = field(default_factory=dict)
    chart: Path = CHART

    def upgrade(self, **values: Any) -> None:
        """helm upgrade --install --wait, with these values changed."""
        self.values |= values
        arguments = ("upgrade", "--install", self.release, str(self.chart), "--values=-", "--wait", "--timeout=3m")
        self.helm(*arguments, stdin=json.dumps(self.values))

    def helm(self, *arguments: str, stdin: str | None = None) -> str:
        command = [build.ensure().path("helm"), *arguments, f"--namespace={self.release}"]
        environment = {**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig)}
        done = subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}\n{self.tail()}"
        return done.stdout

    def pods(self) -> list[dict[str, Any]]:
        """The operator's own."""
        found = self.cluster.kubectl("get", "pods", "-n", self.release, "-l", SELECTOR, "-o", "json")
        pods: list[dict[str, Any]] = json.loads(found)["items"]
        return pods

    def ready(self) -> bool:
        """Whether a pod of the operator is ready, and none is on its way out."""
        pods = self.pods()
        conditions = [each for pod in pods for each in pod["status"].get("conditions", [])]
        leaving = any(pod["metadata"].get("deletionTimestamp") for pod in pods)
        return not leaving and any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def delete_pod(self) -> None:
        """As a node drain does: SIGTERM, and its grace."""
        self.cluster.kubectl("delete", "pod", "-n", self.release, "-l", SELECTOR, "--wait=false")

    def tail(self, lines: int = 60) -> str:
        """The end of the operator's log."""
        try:
            return self.cluster.kubectl("logs", "-n", self.release, "-l", SELECTOR, f"--tail={lines}")
        except AssertionError as error:
            return str(error)


def install_crd(cluster: RunningCluster) -> None:
    """The releases share it, so none of them owns it."""
    with file_locked(instances() / f".{cluster.instance.name}.crd"):
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
        wait_for("the CRD is served", lambda: _serves(cluster))


def _serves(cluster: RunningCluster) -> bool:
    try:
        return bool(cluster.kubectl("get", "--raw", f"/apis/everstep.dev/v1alpha1/{PLURAL}"))
    except AssertionError:
        return False


@contextmanager
def installed(
    cluster: RunningCluster,
    s3: S3Endpoint,
    bucket: str,
    namespaces: Sequence[str],
    image: str,
    profiles: Sequence[dict[str, Any]] = (),
    settings: dict[str, Any] | None = None,
    chart: Path = CHART,
) -> Iterator[Installed]:
    """The operator for new namespaces of these names and a random ending; its pods have the image already.

    All of the namespaces may use `bucket` below `jobs/`; for those that a profile is named after, that one counts.
    """
    ending = secrets.token_hex(3)
    full = tuple(f"{name}-{ending}" for name in namespaces)
    repository, _, tag = image.rpartition(":")
    special = [{**each, "namespaces": [f"{name}-{ending}" for name in each["namespaces"]]} for each in profiles]
    named = {f"{each['name']}-{ending}" for each in profiles}
    values = {
        "image": {"repository": repository, "tag": tag},
        "crd": {"install": False},
        "watchNamespaces": list(full),
        "storageProfiles": [
            {
                "name": "tests",
                "namespaces": [name for name in full if name not in named],
                "endpoint": s3.url,
                "region": s3.region,
                "buckets": [{"name": bucket, "prefixes": ["jobs"]}],
                "credentials": {"accessKey": s3.access_key, "secretKey": s3.secret_key},
            },
            *special,
        ],
        "settings": QUICK if settings is None else settings,
    }
    install_crd(cluster)
    release = Installed(cluster, f"operator-{ending}", full, values, chart)
    try:
        cluster.kubectl("create", "namespace", release.release)
        for name in full:
            make_namespace(cluster, name, s3)
        release.upgrade()
        yield release
    finally:
        _remove(release)


def make_namespace(cluster: RunningCluster, name: str, s3: S3Endpoint) -> None:
    restricted = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    metadata = {"name": name, "labels": restricted}
    keys = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": name}, "stringData": keys}
    for document in ({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}, secret):
        cluster.apply(json.dumps(document))


def _remove(release: Installed) -> None:
    if os.environ.get("EVERSTEP_KEEP"):
        return
    cluster = release.cluster
    for name in release.namespaces:  # while the operator can still take finalizers off
        cluster.kubectl("delete", PLURAL, "--all", "-n", name, "--ignore-not-found", "--timeout=60s")
    release.helm("uninstall", release.release, "--ignore-not-found", "--wait")
    cluster.kubectl("delete", "namespace", release.release, *release.namespaces, "--wait=false", "--ignore-not-found")
