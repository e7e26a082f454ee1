"""Faults beyond a pod's end: a hang, a lost node, refusals of the cluster and of storage, a register that is gone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from everstep.catalog.keys import CATALOG
from tests.support.rig import Rig
from tests.support.waiting import wait_for
from tests.trainers.lite import Options, chain

QUICK = Options(total_steps=30, seconds_per_step=0.02, save_every=10, heartbeat_seconds=0.2)


def condition(rig: Rig, kind: str) -> dict[str, Any]:
    found = rig.status().get("conditions") or []
    return next((each for each in found if each["type"] == kind), {})


def test_a_hang_is_seen_by_the_step_that_stands_still(rig: Rig) -> None:
    rig.options[1] = replace(QUICK, hang_step=15)
    rig.options[0] = QUICK
    rig.apply(failurePolicy={"stallTimeoutSeconds": 3})
    status = rig.until_phase("Succeeded")
    assert status["attempt"] == 2
    assert status["history"][0]["reason"] == "Stalled"
    assert rig.kubelet.container("job-2-0").environment["EVERSTEP_RESUME_STEP"] == "10"
    assert rig.kubelet.container("job-2-0").run.state == chain(30)


def test_a_lost_node_does_not_hold_the_job_though_its_pods_never_go(rig: Rig) -> None:
    rig.options[1] = replace(QUICK, total_steps=10_000)
    rig.options[0] = QUICK
    rig.apply()
    rig.until_running(1)
    wait_for("a commit", lambda: rig.status().get("lastCheckpoint"))
    lost = rig.kubelet.lose_node()
    status = rig.until_phase("Succeeded", seconds=60)
    assert status["attempt"] == 2
    ended = status["history"][0]
    assert (ended["reason"], ended["node"]) == ("NodeLost", lost)
    assert {pod.spec.node_name for pod in rig.pods() if pod.metadata.name.startswith("job-1-")} == {lost}
    assert all(pod.metadata.deletion_timestamp for pod in rig.pods() if pod.metadata.name.startswith("job-1-"))


def test_a_quota_costs_no_attempt_and_is_named(rig: Rig) -> None:
    rig.options[0] = QUICK
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    rig.core.create_namespaced_resource_quota(rig.namespace, quota)
    wait_for("the quota counts", lambda: rig.core.read_namespaced_resource_quota("none", rig.namespace).status.hard)
    rig.apply()
    wait_for("the quota is named", lambda: condition(rig, "Running").get("reason") == "QuotaExceeded")
    assert "exceeded quota" in condition(rig, "Running")["message"]
    assert rig.status().get("attempt", 0) == 0
    assert list(rig.store().list("")) == []
    rig.core.delete_namespaced_resource_quota("none", rig.namespace)
    assert rig.until_phase("Succeeded")["attempt"] == 1


def test_storage_outside_the_profile_ends_the_job_before_any_request(rig: Rig) -> None:
    rig.apply(endpoint="http://127.0.0.1:1")
    rig.until_phase("Failed")
    failed = condition(rig, "Failed")
    assert failed["reason"] == "StorageEndpointNotAllowed"
    assert rig.endpoint in failed["message"]


def test_a_bucket_that_does_not_exist_is_named(rig: Rig) -> None:
    rig.allow_bucket("no-such-bucket")
    rig.bucket = "no-such-bucket"
    rig.apply()
    rig.until_phase("Failed")
    assert "'no-such-bucket' does not exist" in condition(rig, "Failed")["message"]


def test_wrong_credentials_are_named(rig: Rig) -> None:
    (rig.directory / "credentials" / "secretKey").write_text("wrong")
    rig.apply()
    rig.until_phase("Failed")
    assert condition(rig, "Failed")["reason"] == "StorageRefused"


def test_a_pod_of_that_name_is_left_alone_and_named(rig: Rig) -> None:
    rig.options[0] = QUICK
    spec = {"containers": [{"name": "other", "image": "example.test/other:1"}], "nodeName": "elsewhere"}
    rig.core.create_namespaced_pod(rig.namespace, {"metadata": {"name": "job-1-1"}, "spec": spec})
    rig.apply()
    wait_for("the pod is named", lambda: "job-1-1" in condition(rig, "Running").get("message", ""))
    rig.core.delete_namespaced_pod("job-1-1", rig.namespace, grace_period_seconds=0)
    assert rig.until_phase("Succeeded")["attempt"] == 1


def test_a_register_that_was_removed_by_hand_is_not_made_anew(rig: Rig) -> None:
    rig.options[1] = replace(QUICK, crash_step=25)
    rig.options[0] = QUICK
    rig.operator.kill()
    rig.operator.start()
    rig.apply(failurePolicy={"backoff": {"initialSeconds": 1, "maxSeconds": 1}}, suspend=False)
    wait_for("a commit", lambda: rig.status().get("lastCheckpoint"))
    rig.store().delete([CATALOG])
    wait_for("it is told", lambda: condition(rig, "StorageReady").get("reason") == "CatalogMissing")
    wait_for("no gang runs", lambda: not rig.kubelet.running())
    assert "everstep rebuild" in condition(rig, "StorageReady")["message"]
    assert rig.store().read_register(CATALOG) is None
    assert {info.key.split("/")[0] for info in rig.store().list("")} >= {"checkpoints"}


def test_an_annotation_takes_another_clusters_checkpoints_over(rig: Rig) -> None:
    from everstep.catalog import JobCatalog, Owner

    rig.options[0] = QUICK
    JobCatalog(rig.store()).fence(Owner(cluster="another", namespace=rig.namespace, name="job", uid="u"))
    rig.apply()
    wait_for("the owner is named", lambda: condition(rig, "StorageReady").get("reason") == "OwnerConflict")
    assert not rig.pods()
    rig.patch({"metadata": {"annotations": {"everstep.dev/adopt": "true"}}})
    assert rig.until_phase("Succeeded")["attempt"] == 2


def test_an_elastic_gang_starts_with_the_pods_that_there_is_room_for(rig: Rig) -> None:
    """And tries for all of them again after a suspension."""
    rig.options[0] = replace(QUICK, total_steps=200, seconds_per_step=0.05)
    quota = {"metadata": {"name": "two"}, "spec": {"hard": {"pods": "2"}}}
    rig.core.create_namespaced_resource_quota(rig.namespace, quota)
    wait_for("the quota counts", lambda: rig.core.read_namespaced_resource_quota("two", rig.namespace).status.hard)
    policy = {"startTimeoutSeconds": 2, "backoff": {"initialSeconds": 0, "maxSeconds": 0}}
    rig.apply(nodes=3, elastic={"minNodes": 2, "maxNodes": 3}, failurePolicy=policy)
    rig.until_running(2, nodes=2)
    assert [pod.metadata.name for pod in rig.pods() if pod.metadata.name.startswith("job-2-")] == ["job-2-0", "job-2-1"]
    wait_for("it is told", lambda: "2 of 3 nodes" in condition(rig, "Running").get("message", ""))
    wait_for("a commit", lambda: rig.status().get("lastCheckpoint"))
    rig.core.delete_namespaced_resource_quota("two", rig.namespace)
    rig.patch({"spec": {"suspend": True}})
    rig.until_phase("Suspended")
    rig.patch({"spec": {"suspend": False}})
    rig.until_running(3, nodes=3)
    status = rig.until_phase("Succeeded")
    first = status["history"][0]
    assert (first["reason"], first["nextNodes"]) == ("StartTimeout", 2)
    assert status["restarts"]["counted"] == 0
    assert rig.kubelet.container("job-3-0").run.state == chain(200)
