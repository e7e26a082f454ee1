"""Storage that cannot be used: no pod starts, nothing is left, and the job says in plain words what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.e2e.conftest import CLOSED
from tests.support.tenant import Tenant
from tests.support.troubleshooting import explains
from tests.support.waiting import wait_for

Tenants = Callable[[str], Tenant]


def refused(tenant: Tenant, name: str, reason: str) -> str:
    """Wait until the job has failed for that reason, without a pod; returns the message."""
    tenant.until_phase(name, "Failed", seconds=30)
    failed, storage = tenant.condition(name, "Failed"), tenant.condition(name, "StorageReady")
    assert (failed["reason"], storage["reason"], storage["status"]) == (reason, reason, "False")
    message: str = storage["message"]
    assert failed["message"] == f"{message}; to try again, delete the job and apply it anew"
    assert explains(reason, message)
    assert tenant.told(name, "Failed") == failed["message"]
    assert len(tenant.events(name)) == 1
    assert tenant.pods(name) == {}
    return message


@pytest.mark.parametrize(
    ("namespace", "reason", "words"),
    [
        ("nobody", "NamespaceHasNoStorageProfile", "no storage profile is bound to namespace nobody-"),
        ("wrong-keys", "StorageRefused", "storage profile wrong-keys: SignatureDoesNotMatch"),
        ("no-bucket", "StorageRefused", "the bucket 'no-such-bucket' does not exist"),
        ("loose", "StorageNotConditional", "the store replaced an object that does not exist"),
    ],
)
def test_a_profile_that_does_not_work(tenant: Tenants, namespace: str, reason: str, words: str, loose_s3: str) -> None:
    whoever = tenant(namespace)
    manifest = whoever.job("job")
    storage = manifest["spec"]["checkpoint"]["storage"]
    storage |= {"no-bucket": {"uri": "s3://no-such-bucket/jobs"}, "loose": {"endpoint": loose_s3}}.get(namespace, {})
    whoever.apply(manifest)
    assert words in refused(whoever, "job", reason)
    if namespace == "loose":
        assert whoever.keys("job") == [], "the probe leaves nothing"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"uri": "s3://{bucket}/somebody-elses"}, "StorageLocationNotAllowed"),
        ({"uri": "s3://another-bucket/jobs"}, "StorageLocationNotAllowed"),
        ({"endpoint": "http://collector.example.org"}, "StorageEndpointNotAllowed"),
    ],
)
def test_the_operator_cannot_be_aimed_elsewhere(team: Tenant, change: dict[str, str], reason: str) -> None:
    manifest = team.job("astray")
    change = {key: value.format(bucket=team.bucket) for key, value in change.items()}
    manifest["spec"]["checkpoint"]["storage"] |= change
    team.apply(manifest)
    assert f"is not allowed for namespace {team.namespace}; allowed: " in refused(team, "astray", reason)


def test_a_resume_path_that_names_nothing(team: Tenant) -> None:
    path = f"s3://{team.bucket}/jobs/{team.namespace}/nobody/checkpoints/step_000000000010-000002-0123456789ab"
    team.run("heir", resume={"mode": "fromPath", "path": path})
    refused(team, "heir", "ResumePathNotFound")


def test_an_endpoint_that_does_not_answer_is_waited_for(tenant: Tenants) -> None:
    far = tenant("far-away")
    manifest = far.job("patient")
    manifest["spec"]["checkpoint"]["storage"]["endpoint"] = CLOSED
    far.apply(manifest)
    message = far.until_condition("patient", "StorageReady", "False", "StorageUnavailable")
    assert explains("StorageUnavailable", message)
    assert "Could not connect to the endpoint URL" in message
    assert far.status("patient")["phase"] == "Pending"
    assert far.told("patient", "StorageUnavailable") == message
    assert far.pods("patient") == {}


def test_a_profile_without_its_secret_is_waited_for(tenant: Tenants) -> None:
    keyless = tenant("no-keys")
    keyless.run("patient")
    message = keyless.until_condition("patient", "StorageReady", "False", "StorageProfilesUnreadable")
    assert explains("StorageProfilesUnreadable", message)
    assert keyless.status("patient")["phase"] == "Pending"


def test_a_register_that_was_removed_by_hand(team: Tenant) -> None:
    """The pods that run end as fenced; nothing new starts, and nothing is swept, until it is back."""
    team.run("robbed", "--total-steps=100", "--seconds-per-step=0.1", "--save-every=5")
    team.until_step("robbed", 10)
    client = team.s3.client()
    key = f"jobs/{team.namespace}/robbed/catalog.json"
    kept = client.get_object(Bucket=team.bucket, Key=key)["Body"].read()
    client.delete_object(Bucket=team.bucket, Key=key)
    message = team.until_condition("robbed", "StorageReady", "False", "CatalogMissing")
    assert explains("CatalogMissing", message)
    wait_for("its pods are gone", lambda: not team.pods("robbed"), 60)
    saves = {name.split("/")[1] for name in team.keys("robbed") if name.startswith("checkpoints/")}
    named = {entry["location"].split("/")[1] for entry in json.loads(kept)["checkpoints"]}
    assert named <= saves
    client.put_object(Bucket=team.bucket, Key=key, Body=kept)
    status = team.until_phase("robbed", "Succeeded", seconds=120)
    assert status["resumedFrom"]["step"] >= 10
    assert team.condition("robbed", "StorageReady")["status"] == "True"
