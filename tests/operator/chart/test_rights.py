"""The operator's rights are those that it uses: what the audit log shows of its life equals what the chart grants."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from tests.operator.chart.conftest import Release
from tests.plugins.audit import Request
from tests.support.helm import CHART, Manifest, render
from tests.support.rig import Rig
from tests.support.waiting import wait_for
from tests.trainers.lite import Options

QUICK = Options(total_steps=30, seconds_per_step=0.02, save_every=10, heartbeat_seconds=0.2)
Right = tuple[str, str, str]
"""Where (jobs, cluster, node leases, own lease), resource, verb."""


def granted() -> set[Right]:
    """Of the roles that the chart binds to the operator's ServiceAccount."""
    places = {"es-everstep": "jobs", "es-everstep-cluster": "cluster"}
    places |= {"es-everstep-nodes": "node leases", "es-everstep-lease": "own lease"}
    documents = render()
    bound = {each["roleRef"]["name"] for each in documents if each["kind"].endswith("Binding")}
    assert bound == set(places)
    roles = (
        each for each in documents if each["kind"] in ("Role", "ClusterRole") and each["metadata"]["name"] in bound
    )
    return {right for role in roles for right in rights(role, places[role["metadata"]["name"]])}


def rights(role: Manifest, where: str) -> Iterable[Right]:
    for rule in role["rules"]:
        assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
        for resource in rule["resources"]:
            yield from ((where, resource, verb) for verb in rule["verbs"])


def used(requests: Iterable[Request], namespace: str) -> set[Right]:
    found: set[Right] = set()
    for each in requests:
        if each.resource == "leases":
            where = "own lease" if each.namespace == namespace else "node leases"
        else:
            where = "cluster" if each.resource in ("nodes", "namespaces") else "jobs"
        found.add((where, each.resource, each.verb))
        if each.verb == "patch" and each.code == 201:
            found.add((where, each.resource, "create"))  # an apply that creates needs both
    return found


@pytest.mark.timeout(240)
def test_what_is_granted_is_what_is_used(make_release: Callable[[], Release]) -> None:
    release = make_release()
    rig = release.rig
    release.upgrade(CHART, "--take-ownership")
    with rig.kubelet:
        position = rig.cluster.audit.position()
        release.start()
        live(rig)
        assert rig.operator.stop() == 0
    release.uninstall()
    user = f"system:serviceaccount:{rig.namespace}:{release.name}"
    requests = [each for each in rig.cluster.audit.since(position) if each.user == user]
    assert [each for each in requests if each.code == 403] == [], "nothing that it does is forbidden"
    assert {each.namespace for each in requests} == {rig.namespace, "", "kube-node-lease", "kube-system"}
    found = used((each for each in requests if each.resource), rig.namespace)
    assert found - granted() == set(), "used, not granted"
    assert granted() - found == set(), "granted, not used"


def live(rig: Rig) -> None:
    """Everything that an operator does in its life."""
    a_pod_of_that_name_is_somebody_elses(rig)
    a_crash_a_lost_node_and_an_end(rig)
    jobs_that_go(rig)


def a_pod_of_that_name_is_somebody_elses(rig: Rig) -> None:
    rig.options[0] = QUICK
    spec = {"containers": [{"name": "other", "image": "example.test/other:1"}], "nodeName": "elsewhere"}
    rig.core.create_namespaced_pod(rig.namespace, {"metadata": {"name": "taken-1-1"}, "spec": spec})
    rig.apply("taken")
    wait_for("it is told of", lambda: "taken-1-1" in str(rig.status("taken").get("conditions")))
    rig.core.delete_namespaced_pod("taken-1-1", rig.namespace, grace_period_seconds=0)
    rig.until_phase("Succeeded", name="taken")


def a_crash_a_lost_node_and_an_end(rig: Rig) -> None:
    rig.options[1] = replace(QUICK, crash_step=15, crash_silently=True)
    rig.options[2] = replace(QUICK, total_steps=10_000)
    rig.apply("hit", failurePolicy={"backoff": {"initialSeconds": 0, "maxSeconds": 0}})
    rig.until_running(2)
    somebody_takes_a_label_off(rig, "hit-2-1")
    rig.kubelet.lose_node()
    status = rig.until_phase("Succeeded", name="hit", seconds=90)
    assert [each["reason"] for each in status["history"]][1] == "NodeLost"


def somebody_takes_a_label_off(rig: Rig, pod: str) -> None:
    rig.core.patch_namespaced_pod(pod, rig.namespace, {"metadata": {"labels": {"everstep.dev/job-uid": None}}})

    def labels() -> object:
        return rig.core.read_namespaced_pod(pod, rig.namespace).metadata.labels

    wait_for("it is put back", lambda: "everstep.dev/job-uid" in str(labels()))


def jobs_that_go(rig: Rig) -> None:
    rig.options.clear()
    rig.options[0] = QUICK
    rig.apply("brief", ttlSecondsAfterFinished=0)
    rig.apply("clean", deletionPolicy="Delete")
    rig.until_phase("Succeeded", name="clean")
    rig.delete("clean")
    for name in ("brief", "clean"):
        wait_for(f"{name} is gone", lambda name=name: not rig.exists(name))  # type: ignore[misc]
