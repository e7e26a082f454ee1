"""The CRD on a real API server: what it accepts, what it refuses and in which words, and what may change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from everstep_operator.api import TrainingJob, TrainingJobSpec
from everstep_operator.api.fields import changing
from everstep_operator.api.pod_template import from_openapi, stored
from tests.operator.api.conftest import Jobs, RefusedError
from tests.plugins.cluster import RunningCluster
from tests.support.pages import blocks
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


STORAGE = "spec.checkpoint.storage"

# Values that a pattern is there for: a value that is refused, its twin that is accepted.
PATTERNS: list[tuple[str, Any, Any]] = [
    ("spec.managedBy", "nobody", "example.test/x"),
    (f"{STORAGE}.uri", "gs://bucket", "s3://bucket"),
    (f"{STORAGE}.uri", "s3://", "s3://bbb"),
    (f"{STORAGE}.uri", "s3://bucket//x", "s3://bucket/x/"),
    (f"{STORAGE}.uri", "s3://Bucket/x", "s3://b.cket/X"),
    (f"{STORAGE}.endpoint", "s3.test:80", "https://s3.test"),
    (f"{STORAGE}.endpoint", "http://a@b", "http://b"),
    (f"{STORAGE}.endpoint", "http://b/path", "http://b/"),
    (f"{STORAGE}.secretName", "Big", "small"),
    ("spec.checkpoint.local.sizeLimit", "4 GB", "4G"),
    ("spec.resume.path", "/mnt/x", "s3://bucket/x"),
]
IMMUTABLE = [f"spec.{path}" for path in changing("immutable")]
OTHERS = {f"{STORAGE}.uri": "s3://bucket/elsewhere", f"{STORAGE}.endpoint": "http://elsewhere"}
"""Other good values of immutable fields; `spec.managedBy` has one of its own kind."""


@pytest.mark.parametrize(("path", "bad", "good"), PATTERNS, ids=[f"{path}={bad}" for path, bad, _ in PATTERNS])
def test_patterns_tell_good_from_bad(crd_jobs: Jobs, path: str, bad: Any, good: Any) -> None:
    with pytest.raises(RefusedError, match=f"{path}: .*should match"):
        crd_jobs.create(edited(full(), path, bad), dry_run=True)
    crd_jobs.create(edited(full(), path, good), dry_run=True)


@pytest.mark.parametrize("path", IMMUTABLE)
def test_immutable_fields_cannot_be_changed(jobs: Jobs, path: str) -> None:
    stored_job = jobs.create(_job(jobs, full()))
    with pytest.raises(RefusedError, match=f"{path}: .*is immutable: .*new"):
        jobs.replace(edited(stored_job, path, OTHERS.get(path, "example.test/elsewhere")))
    jobs.replace(stored_job)


@pytest.mark.parametrize("path", IMMUTABLE)
@pytest.mark.parametrize("gone", [GONE, None], ids=["removed", "null"])
def test_immutable_fields_cannot_be_removed_so_that_they_could_be_added_again(
    jobs: Jobs, path: str, gone: object
) -> None:
    with_it = jobs.create(_job(jobs, full()))
    with pytest.raises(RefusedError, match=f"{path}: .*(is immutable|Required value)"):
        jobs.replace(edited(with_it, path, gone))


@pytest.mark.parametrize("path", [f"{STORAGE}.endpoint", "spec.managedBy"])
def test_immutable_fields_cannot_be_added(jobs: Jobs, path: str) -> None:
    without = jobs.create(_job(jobs, edited(full(), path, GONE)))
    with pytest.raises(RefusedError, match=f"{path}: .*is immutable"):
        jobs.replace(edited(without, path, OTHERS.get(path, "example.test/x")))


@pytest.mark.parametrize("path", ["spec", "spec.checkpoint", STORAGE])
def test_parents_of_immutable_fields_cannot_be_removed(jobs: Jobs, path: str) -> None:
    stored_job = jobs.create(_job(jobs, full()))
    with pytest.raises(RefusedError, match=f"{path}: Required"):
        jobs.replace(edited(stored_job, path, GONE))


def test_the_name_is_immutable_and_the_status_is_not_the_specs_writers(jobs: Jobs) -> None:
    """A status that could be cleared with the spec would let `resume` be changed after all."""
    created = jobs.create(_job(jobs, minimal()))
    started = jobs.replace_status({**created, "status": {"phase": "Starting", "attempt": 1}})
    kept = jobs.replace({key: value for key, value in started.items() if key != "status"})
    assert kept["status"]["attempt"] == 1
    with pytest.raises(RefusedError, match=r"spec.resume: .*governs the first attempt"):
        jobs.replace(edited({**kept, "status": {}}, "spec.resume", {"mode": "disable"}))


OTHER_VALUES: dict[str, Any] = {
    "spec.nodes": 3,
    "spec.elastic.minNodes": 2,
    "spec.elastic.maxNodes": 3,
    "spec.checkpoint.keepBest.metric": "loss",
    "spec.checkpoint.local.interval": {"steps": 20},
    "spec.checkpoint.local.sizeLimit": "8Gi",
    "spec.resume.path": "s3://bucket/another",
}
CHANGEABLE = [
    *(f"spec.{path}" for how in ("live", "restart", "next-attempt") for path in changing(how)),
    *("spec.resume", "spec.resume.path"),
]


@pytest.mark.parametrize("path", CHANGEABLE)
def test_all_other_fields_can_be_changed(jobs: Jobs, path: str) -> None:
    """From the full manifest's value to another: the default, or what stands in the table."""
    stored_job = jobs.create(_job(jobs, full()))
    spec = TrainingJobSpec.model_validate(minimal()["spec"]).model_dump(mode="json", by_alias=True, exclude_none=True)
    other: Any = OTHER_VALUES.get(path) or spec
    for part in path.split(".")[1:] if other is spec else ():
        other = other.get(part, GONE) if isinstance(other, dict) else GONE
    edit = edited(stored_job, path, other)
    assert edit["spec"] != stored_job["spec"]
    jobs.replace(edit)


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


def _manifests_of_pages() -> list[Any]:
    """Whole manifests, and parts of a spec put into a small one."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for number, block in enumerate(blocks(page, "yaml"), 1):
            content = yaml.safe_load(block)
            if content.get("kind") == "TrainingJob":
                manifest = content
            elif set(content) <= set(TrainingJobSpec.model_json_schema()["properties"]):
                manifest = minimal()
                storage = manifest["spec"]["checkpoint"]
                manifest["spec"] |= content
                manifest["spec"]["checkpoint"] = storage | content.get("checkpoint", {})
            else:
                continue
            found.append(pytest.param(manifest, id=f"{page.name}-{number}"))
    assert len(found) >= 6
    return found


@pytest.mark.parametrize("manifest", _manifests_of_pages())
def test_manifests_of_the_pages_are_accepted(crd_jobs: Jobs, manifest: Manifest) -> None:
    crd_jobs.create(_job(crd_jobs, manifest), dry_run=True)
