"""The demo on a cluster that others use."""

from __future__ import annotations

import json

import pytest

from dev import build
from dev.demo.install import RELEASE, SYSTEM, InstallError, install
from dev.demo.kubectl import Kubectl
from dev.demo.target import Target
from dev.s3 import S3Endpoint
from tests.plugins.cluster import RunningCluster
from tests.support.helm import CHART, INLINE, helm


def test_the_demo_replaces_no_everstep_that_is_in_use(chart_server: RunningCluster, s3_server: S3Endpoint) -> None:
    where = ("--kubeconfig", str(chart_server.kubeconfig), "--namespace", SYSTEM)
    values = {"storageProfiles": [INLINE], "crd": {"install": False}}
    helm("upgrade", "--install", RELEASE, str(CHART), *where, "--create-namespace", values=values)
    try:
        kubectl = Kubectl(chart_server.kubectl_path, str(chart_server.kubeconfig), "default")
        target = Target(kubectl, build.ensure().path("helm"), s3_server, "demo", "operator:1", "trainer:1")
        with pytest.raises(InstallError, match=rf"{RELEASE} in {SYSTEM} is not .*: inline\)"):
            install(target)
        assert json.loads(helm("get", "values", RELEASE, *where, "--output=json")) == values
    finally:
        helm("uninstall", RELEASE, *where)
