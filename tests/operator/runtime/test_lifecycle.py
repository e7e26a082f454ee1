"""A job's life beside its failures: asked for, interrupted, removed, while it runs, rests, restarts or nobody looks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import yaml
from kubernetes import client

from tests.operator.runtime.conftest import CRD
from tests.support.rig import Rig
from tests.support.waiting import wait_for
from tests.trainers.lite import Options, chain

QUICK = Options(total_steps=30, seconds_per_step=0.02, save_every=10, heartbeat_seconds=0.2)
LONG = replace(QUICK, total_steps=60, seconds_per_step=0.05)
ENDLESS = replace(QUICK, total_steps=10**6, save_every=25)
SERVICE = "job-rendezvous"


def annotate(rig: Rig, **annotations: str) -> None:
    named = {f"everstep.dev/{name.replace('_', '-')}": value for name, value in annotations.items()}
    rig.patch({"metadata": {"annotations": named}})


def until_committed(rig: Rig) -> None:
    wait_for("a commit", lambda: rig.status().get("lastCheckpoint"))


def history(rig: Rig) -> list[str]:
    return [entry["reason"] for entry in rig.status().get("history", [])]


def test_restart_now_saves_first_and_is_done_once(rig: Rig) -> None:
    rig.options[1] = ENDLESS
    rig.options[0] = replace(QUICK, total_steps=10**6, save_every=10**6)
    rig.apply()
    rig.until_running(1)
    until_committed(rig)
    annotate(rig, restart_now="monday")
    rig.until_running(2)
    saved = rig.kubelet.container("job-1-0").run.step
    assert rig.kubelet.container("job-2-0").environment["EVERSTEP_RESUME_STEP"] == str(saved)
    status = rig.until_phase("Running")
    assert (history(rig), status["restarts"]["total"]) == (["RestartRequested"], 0)
    assert status["requests"]["restart"] == "monday"
    annotate(rig, restart_now="monday", other="1")
    rig.operator.kill()
    rig.operator.start()
    annotate(rig, restart_now="tuesday")
    rig.until_running(3)
    assert history(rig) == ["RestartRequested", "RestartRequested"]
    assert rig.reasons().count("RestartRequested") == 2


def test_checkpoint_now_is_saved_by_the_running_gang_and_acknowledged(rig: Rig) -> None:
    rig.options[0] = replace(QUICK, total_steps=10**6, save_every=10**6)
    rig.apply()
    rig.until_running(1)
    for count, value in enumerate(["monday", "tuesday"], start=1):
        annotate(rig, checkpoint_now=value)
        wait_for("it is acknowledged", lambda: (rig.status().get("requests") or {}).get("checkpointSaved") == value)  # noqa: B023
        assert len(rig.catalog().live()) == count
    step = rig.kubelet.container("job-1-0").run.step
    annotate(rig, checkpoint_now="tuesday", other="1")
    wait_for("it trains on", lambda: rig.kubelet.container("job-1-0").run.step > step + 50)
    assert len(rig.catalog().live()) == 2
    assert (history(rig), rig.reasons().count("CheckpointSaved")) == ([], 2)


def test_a_rendezvous_service_that_was_deleted_comes_back_at_its_address(rig: Rig) -> None:
    rig.options[0] = ENDLESS
    rig.apply()
    rig.until_running(1)
    until_committed(rig)
    before = rig.core.read_namespaced_service(SERVICE, rig.namespace)
    rig.core.delete_namespaced_service(SERVICE, rig.namespace)
    after = wait_for("the service is back", lambda: service(rig), 15)
    assert after.metadata.uid != before.metadata.uid
    assert after.spec.cluster_ip == before.spec.cluster_ip
    rig.core.patch_namespaced_service(SERVICE, rig.namespace, {"spec": {"selector": {"everstep.dev/index": "1"}}})
    wait_for("its selector is back", lambda: service(rig).spec.selector["everstep.dev/index"] == "0", 15)
    wait_for("the gang trains on", lambda: rig.status()["lastCheckpoint"]["step"] > 100)
    assert history(rig) == []


def test_where_its_address_is_taken_the_gang_is_replaced_at_once(rig: Rig) -> None:
    rig.options[1] = ENDLESS
    rig.options[0] = QUICK
    rig.apply()
    rig.until_running(1)
    until_committed(rig)
    address = rig.core.read_namespaced_service(SERVICE, rig.namespace).spec.cluster_ip
    rig.operator.kill()
    rig.core.delete_namespaced_service(SERVICE, rig.namespace)
    thief = {"metadata": {"name": "thief"}, "spec": {"clusterIP": address, "ports": [{"port": 80}]}}
    rig.core.create_namespaced_service(rig.namespace, thief)
    rig.operator.start()
    status = rig.until_phase("Succeeded")
    assert (history(rig)[0], status["restarts"]["counted"]) == ("RendezvousMoved", 0)
    assert address in status["history"][0]["message"]


def test_a_key_that_a_webhook_adds_to_the_selector_is_left_where_it_is(rig: Rig) -> None:
    rig.options[0] = ENDLESS
    with admission(rig, '[JSONPatch{op: "add", path: "/spec/selector/mesh", value: "in"}]'):
        position = rig.cluster.audit.position()
        rig.apply()
        rig.until_running(1)
        assert service(rig).spec.selector["mesh"] == "in"
        rig.core.patch_namespaced_service(SERVICE, rig.namespace, {"spec": {"selector": {"everstep.dev/index": "1"}}})
        wait_for("our own part is back", lambda: service(rig).spec.selector["everstep.dev/index"] == "0", 15)
        until_committed(rig)
        rig.operator.kill()
        step = rig.status()["lastCheckpoint"]["step"]
        rig.operator.start()
        wait_for("the gang is looked at", lambda: rig.status()["lastCheckpoint"]["step"] > step, 90)
        writes = rig.cluster.audit.writes(position, agent="everstep-operator")
    applied = [each for each in writes if (each.namespace, each.resource) == (rig.namespace, "services")]
    assert 2 <= len(applied) <= 4, "one apply for the attempt, one for the hand's change, one for each process"
    assert history(rig) == []


@contextmanager
def admission(rig: Rig, patch: str) -> Iterator[None]:
    """An admission policy that changes each service of the namespace; it is in force while the block runs."""
    name = f"tests-{rig.namespace}"
    rules = [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["services"]}]
    within = {"matchLabels": {"kubernetes.io/metadata.name": rig.namespace}}
    mutation = {"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}
    specs = {
        "MutatingAdmissionPolicy": {
            "matchConstraints": {"namespaceSelector": within, "resourceRules": rules},
            "reinvocationPolicy": "Never",
            "mutations": [mutation],
        },
        "MutatingAdmissionPolicyBinding": {"policyName": name},
    }
    made = [
        {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        for kind, spec in specs.items()
    ]
    sample = {"metadata": {"name": "sample"}, "spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}}

    def in_force() -> bool:
        answer = rig.core.create_namespaced_service(rig.namespace, sample, dry_run="All")
        return bool(answer.spec.selector != {"a": "b"})

    rig.cluster.apply(yaml.safe_dump_all(made))
    try:
        wait_for("the policy is in force", in_force, 30)
        yield
    finally:
        rig.cluster.kubectl("delete", "-f", "-", stdin=yaml.safe_dump_all(made))


def service(rig: Rig) -> Any:
    try:
        return rig.core.read_namespaced_service(SERVICE, rig.namespace)
    except client.ApiException as error:
        if error.status != 404:
            raise
        return None


def gone(rig: Rig) -> bool:
    """Nothing is left of the job in the cluster."""
    return not rig.exists() and not rig.pods() and not service(rig)


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
@pytest.mark.parametrize("moment", ["running", "suspended", "restarting", "operator down"])
def test_a_job_may_be_deleted_at_any_moment(rig: Rig, moment: str, policy: str) -> None:
    rig.options[0] = ENDLESS
    rig.apply(deletionPolicy=policy, failurePolicy={"backoff": {"initialSeconds": 60, "maxSeconds": 60}})
    rig.until_running(1)
    until_committed(rig)
    if moment == "suspended":
        rig.patch({"spec": {"suspend": True}})
        rig.until_phase("Suspended")
    elif moment == "restarting":
        rig.core.delete_namespaced_pod("job-1-1", rig.namespace, grace_period_seconds=0)
        wait_for("it is told", lambda: history(rig))
    elif moment == "operator down":
        rig.operator.kill()
    rig.delete()
    if moment == "operator down":
        assert rig.exists() is (policy == "Delete")
        rig.operator.start()
    wait_for("nothing is left in the cluster", lambda: gone(rig), 60)
    if policy == "Delete":
        assert list(rig.store().list("")) == []
    else:
        assert rig.catalog().latest() is not None


def test_the_finalizer_lets_go_where_the_user_says_so(rig: Rig) -> None:
    """Checkpoints that cannot be deleted, here for want of credentials, keep neither the job nor its namespace."""
    rig.options[0] = QUICK
    rig.apply(deletionPolicy="Delete")
    rig.until_phase("Succeeded")
    rig.operator.kill()
    (rig.directory / "credentials" / "secretKey").write_text("wrong")
    rig.operator.start()
    rig.delete()

    def told() -> str:
        found = rig.status().get("conditions", [])
        return next((each["message"] for each in found if each["type"] == "StorageReady"), "")

    wait_for("the way out is told", lambda: "deletionPolicy is Retain" in told())
    rig.patch({"spec": {"deletionPolicy": "Retain"}})
    wait_for("the job is gone", lambda: not rig.exists())


def test_the_deadline_ends_a_job_however_often_it_was_restarted(rig: Rig) -> None:
    rig.options[0] = ENDLESS
    rig.apply(activeDeadlineSeconds=600)
    rig.until_running(1)
    until_committed(rig)
    rig.core.delete_namespaced_pod("job-1-1", rig.namespace, grace_period_seconds=0)
    rig.until_running(2)
    wait_for("it claims", lambda: (claim := rig.catalog().claim) is not None and claim.attempt == 2)
    rig.patch({"spec": {"activeDeadlineSeconds": 1}})
    rig.until_phase("Failed")
    assert history(rig)[-1] == "DeadlineExceeded"
    stopped = rig.kubelet.container("job-2-0").run
    wait_for("it has stopped", lambda: rig.kubelet.container("job-2-0").exit_code is not None)
    assert rig.catalog().live()[-1].step == stopped.step, "it had the time to save"


def test_a_job_of_another_controller_is_left_alone(rig: Rig) -> None:
    rig.options[0] = QUICK
    rig.apply("other", managedBy="example.test/other")
    rig.apply("ours", managedBy="everstep.dev/operator")
    rig.until_phase("Succeeded", name="ours")
    assert rig.job("other").get("status") is None
    assert {pod.metadata.labels["everstep.dev/job"] for pod in rig.pods()} == {"ours"}
    rig.delete("other")
    wait_for("it is gone", lambda: not rig.exists("other"))


def test_edits_of_a_pod_by_hand_change_nothing_and_a_deleted_one_is_replaced(rig: Rig) -> None:
    rig.options[1] = ENDLESS
    rig.options[0] = QUICK
    rig.apply()
    rig.until_running(1)
    until_committed(rig)
    annotations = {"everstep.dev/nodes": "7", "everstep.dev/resume-step": "999", "everstep.dev/epoch": "x"}
    body = {"metadata": {"annotations": annotations}}
    rig.core.patch_namespaced_pod("job-1-1", rig.namespace, body)
    step = rig.status()["lastCheckpoint"]["step"]
    wait_for("the gang trains on", lambda: rig.status()["lastCheckpoint"]["step"] > step)
    assert history(rig) == []
    rig.core.delete_namespaced_pod("job-1-1", rig.namespace, grace_period_seconds=0)
    assert rig.until_phase("Succeeded")["attempt"] == 2
    second = rig.kubelet.container("job-2-0").run
    assert second.state == chain(second.step)


def test_pods_without_their_labels_are_found_by_name_and_get_them_back(rig: Rig) -> None:
    rig.options[0] = ENDLESS
    rig.apply()
    rig.until_running(1)
    until_committed(rig)
    before = {pod.metadata.name: pod.metadata for pod in rig.pods()}
    all_of_ours = dict.fromkeys(before["job-1-0"].labels)
    rig.core.patch_namespaced_pod("job-1-0", rig.namespace, {"metadata": {"labels": all_of_ours}})
    rig.core.patch_namespaced_pod("job-1-1", rig.namespace, {"metadata": {"ownerReferences": None}})

    def mended() -> bool:
        return {pod.metadata.name: (pod.metadata.labels, pod.metadata.owner_references) for pod in rig.pods()} == {
            name: (meta.labels, meta.owner_references) for name, meta in before.items()
        }

    wait_for("they have them again", mended, 20)
    rig.operator.kill()
    rig.core.patch_namespaced_pod("job-1-1", rig.namespace, {"metadata": {"labels": all_of_ours}})
    rig.operator.start()
    wait_for("one has them again that lost them while nobody looked", mended)
    assert {pod.metadata.uid for pod in rig.pods()} == {meta.uid for meta in before.values()}
    assert history(rig) == []


def test_a_job_that_cannot_be_read_goes_when_it_is_deleted_and_leaves_its_checkpoints(rig: Rig) -> None:
    rig.options[0] = ENDLESS
    rig.apply(deletionPolicy="Delete", nodes=1)
    rig.until_running(1, nodes=1)
    until_committed(rig)
    strict = yaml.safe_load(CRD.read_text())
    loose = copy.deepcopy(strict)
    properties = loose["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    properties["nodes"]["maximum"] = 10**6

    def edited() -> bool:
        try:
            rig.patch({"spec": {"nodes": 10**6}})
        except client.ApiException:
            return False  # the strict one is still served
        return True

    try:
        rig.cluster.apply(yaml.safe_dump(loose))
        wait_for("a CRD of another version is served", edited)
    finally:
        rig.cluster.apply(yaml.safe_dump(strict))
    wait_for("it is told of", lambda: "InvalidSpec" in rig.reasons())
    rig.delete()
    wait_for("nothing is left", lambda: gone(rig), 90)
    assert "CheckpointsRetained" in rig.reasons()
    assert rig.catalog().live()


def test_two_gangs_that_each_hold_half_of_what_they_need_do_not_wait_for_each_other(rig: Rig) -> None:
    """Room for two pods. `left` gets one while something else has the other; then `right` is quicker than its retry."""
    rig.options[0] = QUICK
    quota = {"metadata": {"name": "small"}, "spec": {"hard": {"pods": "2"}}}
    rig.core.create_namespaced_resource_quota(rig.namespace, quota)
    wait_for("the quota counts", lambda: rig.core.read_namespaced_resource_quota("small", rig.namespace).status.hard)
    spec = {"containers": [{"name": "other", "image": "example.test/other:1"}], "nodeName": "elsewhere"}
    rig.core.create_namespaced_pod(rig.namespace, {"metadata": {"name": "other"}, "spec": spec})
    policy = {"startTimeoutSeconds": 12, "backoff": {"initialSeconds": 5, "maxSeconds": 20}}
    rig.apply("left", failurePolicy=policy)
    wait_for("left holds one", lambda: reason(rig, "left") == "QuotaExceeded" and "left-1-" in str(names(rig)))
    rig.core.delete_namespaced_pod("other", rig.namespace, grace_period_seconds=0)
    rig.apply("right", failurePolicy=policy)
    wait_for("right waits or runs", lambda: reason(rig, "right") in ("QuotaExceeded", "GangRunning") or done(rig))
    held = names(rig)
    for name in ("left", "right"):
        rig.until_phase("Succeeded", name=name, seconds=90)
    entries = [entry for name in ("left", "right") for entry in rig.status(name)["history"]]
    ended = [entry for entry in entries if entry["reason"] != "Completed"]
    assert {entry["reason"] for entry in ended} <= {"StartTimeout"}
    if {name.split("-")[0] for name in held} == {"left", "right"} and len(held) == 2:
        assert ended, "somebody gave way"
        assert "exceeded quota" in ended[0]["message"]
    for name in ("left", "right"):
        assert rig.status(name)["restarts"]["counted"] == 0


def names(rig: Rig) -> list[str]:
    return [pod.metadata.name for pod in rig.pods() if pod.metadata.name != "other"]


def reason(rig: Rig, name: str) -> str | None:
    found = rig.status(name).get("conditions") or []
    return next((each["reason"] for each in found if each["type"] == "Running"), None)


def done(rig: Rig) -> bool:
    return rig.status("right").get("phase") == "Succeeded"


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
def test_a_namespace_that_is_deleted_goes(rig: Rig, policy: str) -> None:
    """With a job that trains and one that waits: only the removal of checkpoints that was asked for holds it."""
    rig.options[0] = ENDLESS
    rig.apply(deletionPolicy=policy)
    rig.until_running(1)
    until_committed(rig)
    rig.apply("waiting", deletionPolicy=policy, suspend=True)
    rig.core.delete_namespace(rig.namespace)

    def left() -> bool:
        try:
            rig.core.read_namespace(rig.namespace)
        except client.ApiException as error:
            return bool(error.status != 404)
        return True

    wait_for("the namespace is gone", lambda: not left(), 60)
    assert bool(list(rig.store().list("checkpoints/"))) is (policy == "Retain")


def test_a_job_applied_again_at_once_waits_for_its_namesakes_pods_and_adopts_its_checkpoints(rig: Rig) -> None:
    rig.options[1] = ENDLESS
    rig.options[0] = replace(QUICK, total_steps=10**6)
    rig.apply()
    rig.until_running(1)
    until_committed(rig)
    rig.delete()
    rig.apply()
    rig.until_running(2)
    saved = rig.kubelet.container("job-1-0").run.step
    resumed = int(rig.kubelet.container("job-2-0").environment["EVERSTEP_RESUME_STEP"])
    assert 0 < resumed <= saved
    assert [entry.step for entry in rig.catalog().live() if entry.attempt == 1][-1] == resumed
