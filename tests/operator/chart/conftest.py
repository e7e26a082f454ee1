"""The chart as Helm installs it on an API server of its own, CRD and all; the operator runs as its ServiceAccount."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dev.instance import Level
from dev.s3 import S3Endpoint
from everstep.catalog import S3Access
from tests.plugins.cluster import RunningCluster, shared
from tests.support.helm import CHART, helm
from tests.support.kubelet import Kubelet
from tests.support.operator_process import OperatorProcess
from tests.support.rig import Rig, write_profiles
from tests.trainers.lite import Job, Options


@pytest.fixture(scope="session")
def chart_server() -> Iterator[RunningCluster]:
    """An API server on which nothing is but what Helm puts there."""
    with shared(f"test-chart-{os.getpid()}", Level.api, s3=False) as running:
        yield running


@dataclass
class Release:
    """One release of the chart in the rig's namespace, which its operator watches alone."""

    rig: Rig

    @property
    def name(self) -> str:
        return self.rig.namespace

    @property
    def where(self) -> list[str]:
        return ["--kubeconfig", str(self.rig.cluster.kubeconfig), "--namespace", self.rig.namespace]

    def values(self, **values: Any) -> dict[str, Any]:
        return {"fullnameOverride": self.name, "watchNamespaces": [self.rig.namespace], **values}

    def upgrade(self, chart: Path = CHART, *options: str, **values: Any) -> str:
        arguments = ["upgrade", "--install", self.name, str(chart), *self.where, *options]
        return helm(*arguments, values=self.values(**values))

    def uninstall(self) -> str:
        return helm("uninstall", self.name, *self.where)

    def start(self) -> OperatorProcess:
        """The operator with the rights of the release's ServiceAccount, as the release stands now."""
        rig = self.rig
        path = rig.directory / "service-account.kubeconfig"
        rig.operator.kubeconfig = rig.cluster.service_account_kubeconfig(path, rig.namespace, self.name)
        rig.operator.settings["LEASE_NAME"] = self.name
        return rig.operator.start()


@pytest.fixture
def make_release(
    chart_server: RunningCluster, s3_server: S3Endpoint, s3_bucket: str, tmp_path: Path
) -> Iterator[Callable[[], Release]]:
    """Makes releases that are not installed yet, each with a namespace, a kubelet that plays there, and a bucket."""
    spaces: list[Any] = []
    rigs: list[Rig] = []

    def make() -> Release:
        space = chart_server.namespace()
        namespace = space.__enter__()
        spaces.append(space)
        directory = tmp_path / namespace
        directory.mkdir()
        profiles = write_profiles(directory, s3_server, s3_bucket, s3_server.url)
        operator = OperatorProcess(chart_server.kubeconfig, directory, namespace, profiles)
        access = S3Access(s3_server.url, s3_server.region, s3_server.access_key, s3_server.secret_key)
        options: dict[int | str, Options] = {}

        def choose(job: Job) -> Options:
            return options.get(job.attempt) or options.get(0) or Options()

        kubelet = Kubelet(chart_server.kubeconfig, namespace, access, choose)
        rig = Rig(chart_server, namespace, s3_server, s3_bucket, directory, operator, kubelet, options, s3_server.url)
        rigs.append(rig)
        return Release(rig)

    yield make
    for rig in rigs:
        rig.operator.kill()
    for space in spaces:
        space.__exit__(None, None, None)
