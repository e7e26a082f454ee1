"""Real servers for tests: an S3 server, an API server without nodes, a whole cluster. None starts unless asked for.

The instances are shared by test runs that go on at the same time. The last run to end takes an instance down, unless
it was up before (`python -m dev up --instance test-api --level api`) or EVERSTEP_KEEP is set.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import pytest
from kubernetes import client, config

from dev import build, images, kubeconfig
from dev import cluster as clusters
from dev.instance import Instance, Level, load
from dev.paths import instances
from dev.s3 import S3Endpoint, S3Server
from tests.plugins.audit import AuditLog
from tests.support.waiting import wait_for

WITH_IMAGES = 900
"""Seconds."""


@dataclass(frozen=True)
class RunningCluster:
    """A running instance, as tests see it."""

    instance: Instance
    kubectl_path: str

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.instance.kubeconfig

    @property
    def audit_log(self) -> Path:
        return self.instance.audit_log

    @property
    def audit(self) -> AuditLog:
        return AuditLog(self.audit_log)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl prints, as the administrator; raises AssertionError with its words when it fails."""
        command = [self.kubectl_path, f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def apply(self, manifest: str) -> str:
        """Server-side apply of a YAML or JSON document, with strict validation."""
        return self.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=manifest)

    def service_account_kubeconfig(self, path: Path, namespace: str, name: str) -> Path:
        """Write a kubeconfig that acts as a ServiceAccount: what its RBAC forbids is forbidden."""
        return kubeconfig.for_service_account(
            path, kubectl=self.kubectl_path, admin=self.kubeconfig, namespace=namespace, name=name
        )

    @cached_property
    def core(self) -> client.CoreV1Api:
        """As the administrator. Asked in place of kubectl where nobody looks at what kubectl says: that takes a tenth
        of a second of a processor each time."""
        return client.CoreV1Api(config.new_client_from_config(str(self.kubeconfig)))

    @contextmanager
    def namespace(self) -> Iterator[str]:
        """A namespace of a unique name, its default ServiceAccount being there; deleted afterwards."""
        name = f"test-{secrets.token_hex(4)}"
        self.core.create_namespace({"metadata": {"name": name}})
        try:
            wait_for(f"{name} has its ServiceAccount", lambda: self._has_account(name))
            yield name
        finally:
            try:
                self.core.delete_namespace(name)
            except client.ApiException as error:
                if error.status != 404:  # a test may have deleted it
                    raise

    def _has_account(self, namespace: str) -> bool:
        try:
            self.core.read_namespaced_service_account("default", namespace)
        except client.ApiException as error:
            if error.status != 404:
                raise
            return False
        return True


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Endpoint]:
    """A real S3 server on loopback: `.url`, `.access_key`, `.secret_key`, `.region`, `.client()`, `.make_bucket()`."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture
def s3_bucket(s3_server: S3Endpoint) -> str:
    """The name of a fresh bucket. Its objects go with the server."""
    return s3_server.make_bucket()


@pytest.fixture(scope="session")
def api_server() -> Iterator[RunningCluster]:
    """A real API server without nodes. Pods stay Pending: a test plays the kubelet by patching their status."""
    with shared("test-api", Level.api, s3=False) as running:
        yield running


@pytest.fixture
def api_namespace(api_server: RunningCluster) -> Iterator[str]:
    """A fresh namespace on the API server without nodes."""
    with api_server.namespace() as name:
        yield name


@pytest.fixture(scope="session")
def cluster() -> Iterator[RunningCluster]:
    """A whole cluster of one node, which runs pods; its S3 server is `cluster_s3`.

    EVERSTEP_TEST_INSTANCE: another one than `test`.
    """
    with shared(os.environ.get("EVERSTEP_TEST_INSTANCE", "test"), Level.full, s3=True) as running:
        yield running


@pytest.fixture
def cluster_namespace(cluster: RunningCluster) -> Iterator[str]:
    """A fresh namespace on the whole cluster."""
    with cluster.namespace() as name:
        yield name


@pytest.fixture(scope="session")
def cluster_s3(cluster: RunningCluster) -> S3Endpoint:
    """The whole cluster's S3 server, at an address that its pods and the tests both reach."""
    return clusters.s3_server(cluster.instance).endpoint


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Whichever test of a tier comes first waits for images, for minutes where the cluster has none yet."""
    for item in items:
        if "load_image" in getattr(item, "fixturenames", ()):
            own = item.get_closest_marker("timeout")
            item.add_marker(pytest.mark.timeout(max(WITH_IMAGES, own.args[0] if own else 0)), append=False)


@pytest.fixture(scope="session")
def load_image(cluster: RunningCluster) -> Callable[[str], str]:
    """A function that has one of the project's images (operator, trainer, tests) in the whole cluster: its name."""
    known = {image.short_name: image for image in images.IMAGES}

    def loading(short_name: str) -> str:
        images.load(cluster.instance, [known[short_name]])
        return known[short_name].name

    return loading


@contextmanager
def shared(name: str, level: Level, *, s3: bool) -> Iterator[RunningCluster]:
    """An instance that test runs share: the first starts it, the last takes it down."""
    instances().mkdir(parents=True, exist_ok=True)
    mark = instances() / f".{name}.started-by-tests"
    with (instances() / f".{name}.users").open("w") as users, (instances() / f".{name}.turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if alone(users) and load(name) is None:
            mark.touch()
        instance = clusters.up(name, level, s3=s3)
        fcntl.flock(users, fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        try:
            yield RunningCluster(instance, build.ensure().path("kubectl"))
        finally:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if mark.exists() and alone(users) and not os.environ.get("EVERSTEP_KEEP"):
                clusters.down(name)
                mark.unlink()


def alone(users: IO[str]) -> bool:
    """True when no other test run uses the instance; the lock is then held exclusively."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
