"""A release of the chart on a real node: upgrade, `helm test`, budget, network policy, uninstall."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dev.s3 import S3Endpoint
from tests.plugins.cluster import RunningCluster
from tests.support.helm import CHART, previous_chart
from tests.support.installed import SELECTOR, Installed, installed
from tests.support.network_policy import REFUSED, enforced
from tests.support.tenant import Tenant, tenants
from tests.support.waiting import wait_for

KUBELET = 10250
"""Open to whoever reaches the node, and none of the operator's business."""
LONG = ("--total-steps=100000", "--seconds-per-step=0.1", "--save-every=5")


@pytest.fixture
def previous(
    cluster: RunningCluster, cluster_s3: S3Endpoint, bucket: str, load_image: Callable[[str], str], tmp_path: Path
) -> Iterator[Installed]:
    """A release of the chart as it was before its last change, with the operator as it is now."""
    chart = previous_chart(tmp_path)
    with installed(cluster, cluster_s3, bucket, ["upgraded"], load_image("operator"), chart=chart) as release:
        yield release


def helm_test(release: Installed) -> None:
    said = release.helm("test", release.release, "--timeout=2m")
    assert "Phase:          Succeeded" in said, said


def evict(release: Installed, pod: str) -> None:
    """As `kubectl drain` does; raises AssertionError with the API server's words."""
    metadata = {"name": pod, "namespace": release.release}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    path = f"/api/v1/namespaces/{release.release}/pods/{pod}/eviction"
    release.cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))


def connect(release: Installed, host: str, port: int | None) -> None:
    """From the operator's pod; raises AssertionError with the traceback."""
    script = f"import socket; socket.create_connection(({host!r}, {port}), timeout=2)"
    pod = release.pods()[0]["metadata"]["name"]
    release.cluster.kubectl("exec", "-n", release.release, pod, "--", "python3", "-c", script)


def object_of(release: Installed, kind: str) -> dict[str, Any]:
    """The release's only one of its kind."""
    (found,) = json.loads(release.cluster.kubectl("get", kind, "-n", release.release, "-o", "json"))["items"]
    return dict(found)


def test_upgrade_drain_and_uninstall_cost_a_running_job_nothing(
    previous: Installed, cluster_s3: S3Endpoint, bucket: str, load_image: Callable[[str], str], tmp_path: Path
) -> None:
    release, cluster = previous, previous.cluster
    (team,) = tenants(release, cluster_s3, bucket, load_image("tests"), tmp_path)
    team.run("steady", *LONG)
    team.until_step("steady", 5)
    uids = {name: pod["metadata"]["uid"] for name, pod in team.pods("steady").items()}

    release.chart = CHART
    release.upgrade(replicas=2)
    at = team.status("steady")["progress"]["step"]
    team.until_step("steady", at + 20)
    helm_test(release)

    wait_for("the budget counts both", lambda: object_of(release, "pdb")["status"]["disruptionsAllowed"] == 1)
    first, second = (pod["metadata"]["name"] for pod in release.pods())
    evict(release, first)
    with pytest.raises(AssertionError, match="disruption budget"):
        evict(release, second)
    at = team.status("steady")["progress"]["step"]
    team.until_step("steady", at + 20)

    release.helm("uninstall", release.release, "--wait")
    kinds = "all,secret,role,rolebinding,serviceaccount,pdb"
    wait_for(
        "nothing of it is left",
        lambda: release.release not in cluster.kubectl("get", kinds, "-n", release.release, "-o", "name"),
    )
    step = team.steps("steady")[-1]
    wait_for("the gang commits without an operator", lambda: team.steps("steady")[-1] > step)
    assert {name: pod["metadata"]["uid"] for name, pod in team.pods("steady").items()} == uids
    # By the administrator: what the chart added to the built-in roles went with it.
    job = ("trainingjob", "steady", "-n", team.namespace)
    assert cluster.kubectl("get", *job, "-o", "jsonpath={.status.attempt}") == "1"
    cluster.kubectl("delete", *job, "--timeout=60s")
    wait_for("its pods are gone", lambda: not team.pods("steady"))
    assert team.steps("steady"), "checkpoints outlive job and release"


def test_the_network_policy_stops_nothing_that_the_operator_does_and_all_else(team: Tenant) -> None:
    """The cluster's CNI plugin enforces no policies: the rules are put in force by the node's packet filter."""
    release, instance = team.operator, team.operator.cluster.instance
    node = instance.network.node_address
    store = urlsplit(team.s3.url)
    only = {"to": [{"ipBlock": {"cidr": f"{node}/32"}}]}
    api = {**only, "ports": [instance.api_port]}
    release.upgrade(networkPolicy={"enabled": True, "apiServer": api, "dns": only, "storage": only})
    policy = object_of(release, "networkpolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() >= dict([SELECTOR.split("=")]).items()
    pods = release.pods()
    addresses = [pod["status"]["podIP"] for pod in pods]
    ports = {port["name"]: port["containerPort"] for port in pods[0]["spec"]["containers"][0]["ports"]}
    with enforced(instance, policy, addresses, ports) as rules:
        team.run("fenced-in", "--total-steps=60", "--seconds-per-step=0.1", "--save-every=5")
        team.until_step("fenced-in", 10)
        team.kubectl("delete", "pod", "fenced-in-1-1", "--force", "--grace-period=0", "--wait=false")
        assert team.until_phase("fenced-in", "Succeeded")["attempt"] == 2
        helm_test(release)
        seen = rules.packets()
        assert seen[f"egress tcp {instance.api_port}"] > 0
        assert seen[f"egress tcp {store.port}"] > 0
        assert seen["ingress tcp 8080"] > 0
        assert seen[REFUSED] == 0

        connect(release, str(store.hostname), store.port)
        with pytest.raises(AssertionError, match="timed out"):
            connect(release, node, KUBELET)
        assert rules.packets()[REFUSED] > 0
    connect(release, node, KUBELET)
    release.upgrade(networkPolicy={"enabled": False})
