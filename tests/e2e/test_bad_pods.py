"""Pods that cannot start, or start and fail: what the user reads, and how it goes on once the cause is mended."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.tenant import LOCKED_DOWN, RefusedError, Tenant
from tests.support.troubleshooting import PAGE, explains, indented
from tests.support.waiting import wait_for


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["spec"]["template"]["spec"]["containers"][0]
    return found


def waits(team: Tenant, name: str, phase: str, reason: str) -> str:
    """Wait until the job waits for that reason; returns the message, which an event tells as well."""
    message = team.until_condition(name, "Running", "False", reason)
    assert explains(reason, message)
    assert team.status(name)["phase"] == phase
    wait_for("the event", lambda: message in team.told(name, reason))
    return message


def gives_up(team: Tenant, name: str, **options: float) -> str:
    """Wait until the job has failed without progress; returns the last failure, which the page lists."""
    team.until_phase(name, "Failed", **options)
    failed = team.condition(name, "Failed")
    assert failed["reason"] == "NoProgress"
    assert explains("NoProgress", failed["message"])
    cause: str = team.status(name)["history"][-1]["message"]
    assert cause in failed["message"]
    assert explains("NoProgress", cause)
    assert team.status(name)["restarts"]["total"] == 2
    assert list(team.pods(name)), "its last pods stay for their logs"
    return cause


def test_pod_security(team: Tenant) -> None:
    manifest = team.job("insecure", "--total-steps=10")
    del container(manifest)["securityContext"]
    team.apply(manifest)
    message = waits(team, "insecure", "Pending", "PodSecurityViolation")
    assert 'must set securityContext.capabilities.drop=["ALL"]' in message
    assert not team.status("insecure").get("attempt"), "nothing was begun"
    container(manifest)["securityContext"] = LOCKED_DOWN
    team.apply(manifest)
    team.until_phase("insecure", "Succeeded", seconds=90)


def test_a_quota(tenant: Callable[[str], Tenant]) -> None:
    crowded = tenant("crowded")
    cluster = crowded.operator.cluster
    quota: dict[str, Any] = {"apiVersion": "v1", "kind": "ResourceQuota", "spec": {"hard": {"pods": "0"}}}
    quota["metadata"] = {"name": "small", "namespace": crowded.namespace}
    where = ("-n", crowded.namespace, "resourcequota/small")
    cluster.apply(json.dumps(quota))
    cluster.kubectl("wait", *where, "--for=jsonpath={.status.hard.pods}=0", "--timeout=30s")
    crowded.run("squeezed", "--total-steps=10")
    message = waits(crowded, "squeezed", "Pending", "QuotaExceeded")
    assert "exceeded quota: small" in message
    cluster.kubectl("delete", *where)
    crowded.until_phase("squeezed", "Succeeded", seconds=90)


def test_a_value_that_only_a_pod_shows_to_be_wrong(team: Tenant) -> None:
    manifest = team.job("vague")
    container(manifest)["resources"] = {"limits": {"memory": "-1Gi"}}
    team.apply(manifest)
    message = waits(team, "vague", "Pending", "PodInvalid")
    assert "must be greater than or equal to 0" in message


NO_ROOM = {"name": "no-room", "action": "FailJob", "onReasons": ["Unschedulable"]}


def test_more_than_the_cluster_holds(team: Tenant) -> None:
    manifest = team.job("huge", failurePolicy={"startTimeoutSeconds": 5, "rules": [NO_ROOM]})
    container(manifest)["resources"] = {"requests": {"cpu": "400"}}
    team.apply(manifest)
    message = waits(team, "huge", "Starting", "Unschedulable")
    assert "1 Insufficient cpu" in message
    team.until_phase("huge", "Failed")
    failed = team.condition("huge", "Failed")
    assert explains(failed["reason"], failed["message"])
    assert f"not all pods ran within 5 s: {message}" in failed["message"]


def test_an_image_that_cannot_be_pulled(team: Tenant) -> None:
    manifest = team.job("faceless")
    container(manifest)["image"] = "127.0.0.1:9/no/such/image:1"
    team.apply(manifest)
    message = waits(team, "faceless", "Starting", "ImagePullBackOff")
    assert "127.0.0.1:9/no/such/image:1" in message
    assert team.told("faceless", "ImagePullBackOff").count("\n") == 0, "told once, though the kubelet tries on and on"


def test_a_missing_secret(team: Tenant) -> None:
    manifest = team.job("keyless", "--total-steps=10")
    manifest["spec"]["checkpoint"]["storage"]["secretName"] = "not-yet-there"
    team.apply(manifest)
    message = waits(team, "keyless", "Starting", "CreateContainerConfigError")
    assert 'secret "not-yet-there" not found' in message
    team.apply(secret("not-yet-there", team.s3.access_key, team.s3.secret_key))
    team.until_phase("keyless", "Succeeded", seconds=90)


def test_wrong_keys_in_the_pods_secret(team: Tenant) -> None:
    team.apply(secret("mistyped", team.s3.access_key, "mistyped"))
    manifest = team.job("locked-out")
    manifest["spec"]["checkpoint"]["storage"]["secretName"] = "mistyped"
    team.apply(manifest)
    cause = gives_up(team, "locked-out")
    assert "with the credentials of its environment: SignatureDoesNotMatch" in cause


def secret(name: str, access_key: str, secret_key: str) -> dict[str, Any]:
    keys = {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": keys}


def scratch(**volume: str) -> dict[str, Any]:
    return {"volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi", **volume}}]}


FILL = ["sh", "-c", "head -c 20000000 /dev/zero >/scratch/file && sleep 600"]
MOUNT = {"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}


@pytest.mark.parametrize(
    ("name", "pod", "trainer", "words"),
    [
        ("commandless", {}, {"command": ["no-such-program"]}, '"no-such-program": executable file not found in $PATH'),
        ("flagged", {}, {"args": ["--stepz=7"]}, "exited with code 2: lite: error: unrecognized arguments: --stepz=7"),
        ("brief", {}, {"command": ["sh", "-c", "echo no data; exit 1"]}, "exited with code 1: no data"),
        ("full", scratch(medium="Memory"), {"command": FILL, **MOUNT}, "No space left on device"),
    ],
)
def test_a_script_that_cannot_run(
    team: Tenant, name: str, pod: dict[str, Any], trainer: dict[str, Any], words: str
) -> None:
    manifest = team.job(name, nodes=1)
    manifest["spec"]["template"]["spec"] |= pod
    container(manifest).update(trainer)
    team.apply(manifest)
    assert words in gives_up(team, name)


def test_a_volume_that_grows_too_large(team: Tenant) -> None:
    manifest = team.job("greedy", nodes=1, failurePolicy={"maxRestarts": 0})
    manifest["spec"]["template"]["spec"] |= scratch()
    container(manifest).update({"command": FILL, **MOUNT})
    team.apply(manifest)
    team.until_phase("greedy", "Failed", seconds=120)
    failed = team.condition("greedy", "Failed")
    assert explains(failed["reason"], failed["message"])
    assert 'was evicted: Usage of EmptyDir volume "scratch" exceeds the limit "1Mi"' in failed["message"]
    assert team.status("greedy")["history"][0]["reason"] == "Evicted"


MISTAKES: list[tuple[str, Any, str]] = [
    ("template.spec.containers.0.resorces", {}, 'unknown field "spec.template.spec.containers[0].resorces"'),
    ("nodes", 0, "spec.nodes"),
    ("checkpoint.storage.uri", "/data/run1", "spec.checkpoint.storage.uri"),
    ("checkpoint.keepLast", 1, "spec.checkpoint.keepLast"),
    ("checkpoint.interval", {}, "spec.checkpoint.interval"),
    ("resume", {"mode": "fromPath"}, "spec.resume.path"),
    ("template.spec.restartPolicy", "Always", "spec.template.spec.restartPolicy"),
]


@pytest.mark.parametrize(("path", "value", "words"), MISTAKES, ids=[path for path, _, _ in MISTAKES])
def test_a_mistyped_manifest_is_refused_by_its_field(team: Tenant, path: str, value: Any, words: str) -> None:
    manifest = team.job("typo")
    place: Any = manifest["spec"]
    *parents, last = path.split(".")
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[last] = value
    listed = indented(
        PAGE.read_text(encoding="utf-8").partition("## kubectl refuses the manifest")[2].split("\n## ")[0]
    )
    with pytest.raises(RefusedError) as refusal:
        team.apply(manifest)
    told = str(refusal.value)
    assert words in told
    assert any(line in told for line in listed), told


def test_a_name_that_is_too_long(team: Tenant) -> None:
    with pytest.raises(RefusedError, match="must be a DNS label that starts with a letter, 40 characters at most"):
        team.apply(team.job("a" * 41))
