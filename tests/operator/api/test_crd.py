"""The CRD on a real API server: what it accepts, what it refuses and in which words, and what may change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from everstep_operator.api import TrainingJob
from everstep_operator.api.pod_template import from_openapi, stored
from tests.operator.api.conftest import Jobs, RefusedError
from tests.plugins.cluster import RunningCluster
from tests.support.trainingjobs import GONE, Manifest, edited, full, full_status, minimal

ROOT = Path(__file__).parents[3]


def _job(jobs: Jobs, manifest: Manifest) -> Manifest:
    return edited(manifest, "metadata.namespace", jobs.namespace)


def test_the_minimal_manifest_gets_the_defaults_of_the_models(jobs: Jobs) -> None:
    manifest = _job(jobs, minimal())
    found = TrainingJob.parse(jobs.create(manifest))
    assert found.spec == TrainingJob.parse(edited(manifest, "metadata.uid", "u")).spec


def test_every_field_is_stored_as_it_was_given(jobs: Jobs) -> None:
    manifest = _job(jobs, full())
    assert jobs.create(manifest)["spec"] == manifest["spec"]


def test_every_status_field_is_stored_as_it_was_given(jobs: Jobs) -> None:
    created = jobs.create(_job(jobs, minimal()))
    jobs.replace_status({**created, "status": full_status()})
    assert jobs.get("job")["status"] == full_status()


BOTH = {"onReasons": ["OOMKilled"], "onExitCodes": {"values": [1]}}
PLAIN = {"name": "main", "image": "i"}
TEMPLATE = "spec.template.spec"
STORAGE = "spec.checkpoint.storage"
POLICY = "spec.failurePolicy"

# Field to edit in the full manifest, a value that is refused, its twin that is accepted, and words of the refusal.
CASES: list[tuple[str, Any, Any, str]] = [
    ("metadata.name", "1job", "job1", "metadata.name: .*starts with a letter"),
    ("metadata.name", "a.b", "a-b", "metadata.name: .*DNS label"),
    ("metadata.name", "a" * 41, "a" * 40, "metadata.name: .*40 characters"),
    ("spec.nods", 2, GONE, "spec.nods"),
    ("spec.nodes", 0, 1, "spec.nodes: .*greater than or equal to 1"),
    ("spec.nodes", 5, 4, "spec.nodes: .*between elastic.minNodes and elastic.maxNodes"),
    ("spec.nodes", "2", 2, "spec.nodes: .*integer"),
    ("spec.procPerNode", 0, 1, "spec.procPerNode: .*greater than or equal to 1"),
    ("spec.procPerNode", "tpu", "gpu", "spec.procPerNode: .*should match"),
    ("spec.elastic.minNodes", 5, 2, "spec.elastic.minNodes: .*must not exceed maxNodes"),
    ("spec.suspend", "yes", False, "spec.suspend: .*boolean"),
    ("spec.managedBy", "nobody", "example.test/x", "spec.managedBy: .*should match"),
    ("spec.deletionPolicy", "Keep", "Retain", 'spec.deletionPolicy: .*"Retain", "Delete"'),
    ("spec.activeDeadlineSeconds", 0, 1, "spec.activeDeadlineSeconds: "),
    ("spec.ttlSecondsAfterFinished", -1, 0, "spec.ttlSecondsAfterFinished: "),
    ("spec.template", GONE, {"spec": {"containers": [PLAIN]}}, "spec.template: Required"),
    ("spec.template.spec", GONE, {"containers": [PLAIN]}, "spec.template.spec: Required"),
    ("spec.template.metadata.name", "x", GONE, "spec.template.metadata.name"),
    (f"{TEMPLATE}.containers", [], [PLAIN], f"{TEMPLATE}.containers: .*at least 1 items"),
    (
        f"{TEMPLATE}.containers",
        [PLAIN, {"name": "other", "image": "i"}],
        [PLAIN, {"name": "trainer", "image": "i"}],
        "spec.template: .*one container, or one of its containers named trainer",
    ),
    (f"{TEMPLATE}.containers.0.resorces", {}, GONE, r"containers\[0\].resorces"),
    (f"{TEMPLATE}.containers.0.resources.limits.cpu", 0.5, "500m", r"containers\[0\].resources.limits.cpu: "),
    (f"{TEMPLATE}.restartPolicy", "OnFailure", GONE, f"{TEMPLATE}.restartPolicy: .*must be absent or Never"),
    (f"{TEMPLATE}.hostname", "me", GONE, f"{TEMPLATE}.hostname: .*operator names the pods"),
    (f"{TEMPLATE}.subdomain", "me", GONE, f"{TEMPLATE}.subdomain: .*operator names the pods"),
    (
        f"{TEMPLATE}.containers.0.env.0.name",
        "EVERSTEP_ATTEMPT",
        "EVERSTEP_TRAIN_X",
        r"containers\[0\].env\[0\].name: .*must not start with PET_ or EVERSTEP_",
    ),
    (f"{TEMPLATE}.containers.0.env.0.name", "PET_NNODES", "PETS", r"containers\[0\].env\[0\].name: .*PET_"),
    ("spec.checkpoint", GONE, full()["spec"]["checkpoint"], "spec.checkpoint: Required"),
    (STORAGE, GONE, {"uri": "s3://bucket"}, f"{STORAGE}: Required"),
    (f"{STORAGE}.uri", "gs://bucket", "s3://bucket", f"{STORAGE}.uri: .*should match"),
    (f"{STORAGE}.uri", "s3://", "s3://bbb", f"{STORAGE}.uri: "),
    (f"{STORAGE}.uri", "s3://bucket//x", "s3://bucket/x/", f"{STORAGE}.uri: .*should match"),
    (f"{STORAGE}.uri", "s3://Bucket/x", "s3://b.cket/X", f"{STORAGE}.uri: .*should match"),
    (f"{STORAGE}.endpoint", "s3.test:80", "https://s3.test", f"{STORAGE}.endpoint: .*should match"),
    (f"{STORAGE}.endpoint", "http://a@b", "http://b", f"{STORAGE}.endpoint: .*should match"),
    (f"{STORAGE}.secretName", "Big", "small", f"{STORAGE}.secretName: .*should match"),
    (f"{STORAGE}.accessKey", "AK", GONE, f"{STORAGE}.accessKey"),
    ("spec.checkpoint.interval", {}, {"seconds": 1}, "spec.checkpoint.interval: .*needs steps, seconds or both"),
    ("spec.checkpoint.interval.steps", 0, 1, "spec.checkpoint.interval.steps: "),
    ("spec.checkpoint.local.interval", {}, {"steps": 1}, "spec.checkpoint.local.interval: .*needs steps"),
    ("spec.checkpoint.local.medium", "Tape", "Memory", 'spec.checkpoint.local.medium: .*"Memory", "Disk"'),
    ("spec.checkpoint.local.sizeLimit", "4 GB", "4G", "spec.checkpoint.local.sizeLimit: .*should match"),
    ("spec.checkpoint.keepLast", 1, 2, "spec.checkpoint.keepLast: .*greater than or equal to 2"),
    ("spec.checkpoint.keepBest.mode", "low", "min", 'spec.checkpoint.keepBest.mode: .*"min", "max"'),
    ("spec.checkpoint.keepBest.metric", GONE, "loss", "spec.checkpoint.keepBest.metric: Required"),
    ("spec.checkpoint.keepEvery", 0, 1, "spec.checkpoint.keepEvery: "),
    ("spec.resume", {"mode": "fromPath"}, {"mode": "auto"}, "spec.resume.path: .*needed when mode is fromPath"),
    ("spec.resume.mode", "auto", "fromPath", "spec.resume.path: .*only when mode is fromPath"),
    ("spec.resume.path", "/mnt/x", "s3://bucket/x", "spec.resume.path: .*should match"),
    (f"{POLICY}.maxRestarts", -1, 0, f"{POLICY}.maxRestarts: "),
    (f"{POLICY}.maxRestartsWithoutProgress", 0, 1, f"{POLICY}.maxRestartsWithoutProgress: "),
    (f"{POLICY}.backoff.initialSeconds", 61, 60, f"{POLICY}.backoff.initialSeconds: .*must not exceed maxSeconds"),
    (f"{POLICY}.rules.0.name", "memory", "other", f"{POLICY}.rules: .*unique"),
    (f"{POLICY}.rules.0.action", "Retry", "Restart", rf"{POLICY}.rules\[0\].action: .*FailJob"),
    (f"{POLICY}.rules.0.onExitCodes.values", [0], [1], rf"{POLICY}.rules\[0\].onExitCodes.values\[0\]: "),
    (f"{POLICY}.rules.0.onExitCodes.values", [1, 1], [1, 2], rf"{POLICY}.rules\[0\].onExitCodes.values\[1\]: Dup"),
    (
        f"{POLICY}.rules.1",
        {"name": "x", "action": "Restart", **BOTH},
        {"name": "x", "action": "Restart", "onReasons": ["Evicted"]},
        rf"{POLICY}.rules\[1\]: .*exactly one of",
    ),
    (f"{POLICY}.rules.1.onReasons", [], ["Error"], rf"{POLICY}.rules\[1\].onReasons: .*at least 1"),
]


@pytest.mark.parametrize(
    ("path", "bad", "good", "message"), CASES, ids=[f"{path}={str(bad)[:20]}" for path, bad, *_ in CASES]
)
def test_refuses_by_name_what_is_wrong_and_accepts_its_twin(
    crd_jobs: Jobs, path: str, bad: Any, good: Any, message: str
) -> None:
    with pytest.raises(RefusedError, match=f"(?s){message}"):
        crd_jobs.create(edited(full(), path, bad), dry_run=True)
    crd_jobs.create(edited(full(), path, good), dry_run=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{STORAGE}.uri", "s3://bucket/elsewhere"),
        (f"{STORAGE}.endpoint", "http://elsewhere"),
        ("spec.managedBy", "example.test/elsewhere"),
    ],
)
def test_immutable_fields_cannot_be_changed(jobs: Jobs, path: str, value: str) -> None:
    stored_job = jobs.create(_job(jobs, full()))
    with pytest.raises(RefusedError, match=f"{path}: .*is immutable"):
        jobs.replace(edited(stored_job, path, value))


@pytest.mark.parametrize("path", [f"{STORAGE}.endpoint", "spec.managedBy"])
def test_immutable_fields_cannot_be_removed_or_added(jobs: Jobs, path: str) -> None:
    with_it = jobs.create(_job(jobs, full("with")))
    with pytest.raises(RefusedError, match=f"{path}: .*is immutable"):
        jobs.replace(edited(with_it, path, GONE))
    without = jobs.create(_job(jobs, edited(full("without"), path, GONE)))
    with pytest.raises(RefusedError, match=f"{path}: .*is immutable"):
        jobs.replace(edited(without, path, "http://elsewhere" if "endpoint" in path else "example.test/x"))


@pytest.mark.parametrize("path", ["spec.checkpoint", STORAGE])
def test_parents_of_immutable_fields_cannot_be_removed(jobs: Jobs, path: str) -> None:
    stored_job = jobs.create(_job(jobs, full()))
    with pytest.raises(RefusedError, match=f"{path}: Required"):
        jobs.replace(edited(stored_job, path, GONE))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.nodes", 3),
        ("spec.suspend", False),
        (f"{STORAGE}.secretName", "rotated"),
        (f"{STORAGE}.region", GONE),
        ("spec.checkpoint.keepLast", 7),
        ("spec.failurePolicy.maxRestarts", 99),
        ("spec.template.spec.containers.0.image", "example.test/train:2"),
    ],
)
def test_other_fields_can_be_changed(jobs: Jobs, path: str, value: object) -> None:
    jobs.replace(edited(jobs.create(_job(jobs, full())), path, value))


def test_resume_may_change_until_the_first_attempt_has_started(jobs: Jobs) -> None:
    created = jobs.create(_job(jobs, minimal()))
    pending = jobs.replace_status({**created, "status": {"phase": "Pending", "attempt": 0}})
    changed = jobs.replace(edited(pending, "spec.resume", {"mode": "disable"}))
    started = jobs.replace_status({**changed, "status": {"phase": "Starting", "attempt": 1}})
    with pytest.raises(RefusedError, match=r"spec.resume: .*governs the first attempt"):
        jobs.replace(edited(started, "spec.resume", {"mode": "auto"}))
    with pytest.raises(RefusedError, match=r"spec.resume: .*governs the first attempt"):
        jobs.replace(edited(started, "spec.resume", GONE))
    jobs.replace(edited(started, "spec.suspend", True))


def test_the_scale_subresource_sets_the_nodes(jobs: Jobs, crd_server: RunningCluster) -> None:
    jobs.create(_job(jobs, full()))
    crd_server.kubectl("scale", f"--namespace={jobs.namespace}", "tj/job", "--replicas=3")
    assert jobs.get("job")["spec"]["nodes"] == 3


def test_columns(jobs: Jobs, crd_server: RunningCluster) -> None:
    created = jobs.create(_job(jobs, full()))
    jobs.replace_status({**created, "status": full_status()})
    short = crd_server.kubectl("get", f"--namespace={jobs.namespace}", "tj").splitlines()
    assert short[0].split() == ["NAME", "PHASE", "STEP", "PROGRESS", "LAST-CHECKPOINT", "RESTARTS", "AGE"]
    assert short[1].split()[:-1] == ["job", "Running", "1234", "1234/10000", "(12%)", "1200", "2"]
    wide = crd_server.kubectl("get", f"--namespace={jobs.namespace}", "tj", "-o", "wide").splitlines()
    assert wide[0].split()[7:] == ["ATTEMPT", "IN-PLACE", "NODES", "GOODPUT", "LOCATION"]


def test_fields_are_explained(crd_server: RunningCluster) -> None:
    text = crd_server.kubectl("explain", "trainingjob.spec.checkpoint.keepLast")
    assert "Never fewer than two" in " ".join(text.split())


def test_the_pod_templates_schema_is_this_servers(api_server: RunningCluster) -> None:
    document = json.loads(api_server.kubectl("get", "--raw", "/openapi/v3/api/v1"))
    assert from_openapi(document) == stored()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_accepted(crd_jobs: Jobs, path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        if document and document["kind"] == "TrainingJob":
            crd_jobs.create(document, dry_run=True)
