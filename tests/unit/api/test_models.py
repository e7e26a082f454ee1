"""The models read and write every field of a TrainingJob, and survive objects of a newer schema."""

from datetime import UTC, datetime
from typing import Any

import pytest

from everstep_operator.api import InvalidJobError, Phase, TrainingJob, trainer_index
from everstep_operator.api.docs import rows
from everstep_operator.api.schema import resolved
from everstep_operator.api.spec import TrainingJobSpec
from everstep_operator.api.status import Condition, TrainingJobStatus
from tests.support.trainingjobs import GONE, edited, full, full_status, minimal, paths


def _parse(manifest: dict[str, Any], **status: Any) -> TrainingJob:
    return TrainingJob.parse(edited({**manifest, "status": status}, "metadata.uid", "u-1"))


def test_every_spec_field_makes_the_round_trip() -> None:
    spec = full()["spec"]
    read = TrainingJobSpec.model_validate(spec)
    assert read.model_dump(mode="json", by_alias=True, exclude_none=True) == spec


def test_every_status_field_makes_the_round_trip() -> None:
    status = full_status()
    assert TrainingJobStatus.model_validate(status).dump() == status


@pytest.mark.parametrize(("model", "document"), [(TrainingJobSpec, full()["spec"]), (TrainingJobStatus, full_status())])
def test_the_full_manifest_is_full(model: type[TrainingJobSpec | TrainingJobStatus], document: dict[str, Any]) -> None:
    known = {row.path for row in rows(resolved(model))}
    assert known <= paths(document)


def test_no_field_of_the_full_manifest_is_at_its_default() -> None:
    lazy = TrainingJobSpec.model_validate(minimal()["spec"]).model_dump(by_alias=True)
    eager = full()["spec"]
    same = [name for name in lazy if eager[name] == lazy[name]]
    assert same == []


def test_defaults() -> None:
    spec = _parse(minimal()).spec
    assert (spec.nodes, spec.proc_per_node, spec.suspend, spec.deletion_policy) == (1, 1, False, "Retain")
    assert (spec.checkpoint.interval.seconds, spec.checkpoint.interval.steps) == (600, None)
    assert (spec.checkpoint.async_, spec.checkpoint.keep_last) == (True, 3)
    assert spec.failure_policy.max_restarts == 10
    assert spec.failure_policy.start_timeout_seconds == 1200
    assert spec.resume.mode == "auto"


def test_unknown_fields_of_a_newer_schema_are_ignored() -> None:
    newer = edited(edited(full(), "spec.checkpoint.storage.tier", "cold"), "spec.wings", 2)
    job = _parse(newer, phase="Running", mood="good", restarts={"total": 1, "joyful": 2})
    assert job.spec == _parse(full()).spec
    assert job.status.phase is Phase.RUNNING


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.nodes", "2", "spec.nodes: .*integer.*'2'"),
        ("spec.suspend", 1, "spec.suspend: .*boolean"),
        ("spec.resume.mode", "teleport", "spec.resume.mode: .*'auto'.*teleport"),
        ("spec.checkpoint.storage", GONE, "spec.checkpoint.storage: .*required"),
        ("metadata.name", GONE, "metadata.name: .*required"),
    ],
)
def test_what_cannot_be_read_is_named(path: str, value: object, message: str) -> None:
    with pytest.raises(InvalidJobError, match=message):
        _parse(edited(full(), path, value))


def test_metadata_and_helpers() -> None:
    manifest = minimal("lm", "team")
    manifest["metadata"] |= {
        "uid": "u-1",
        "generation": 4,
        "resourceVersion": "77",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "deletionTimestamp": "2026-01-02T00:00:00Z",
        "annotations": {"everstep.dev/adopt": "true"},
        "finalizers": ["everstep.dev/checkpoints"],
        "managedFields": [],
    }
    job = TrainingJob.parse(manifest)
    assert job.key == ("team", "lm")
    assert job.root_uri == "s3://bucket/prefix/team/lm/"
    assert job.is_deleted
    assert job.is_ours
    assert job.metadata.creation_timestamp == datetime(2026, 1, 1, tzinfo=UTC)
    assert job.owner_reference()["uid"] == "u-1"
    assert not _parse(full()).is_ours


def test_root_of_a_uri_with_a_slash_at_its_end() -> None:
    job = _parse(edited(minimal(), "spec.checkpoint.storage.uri", "s3://bucket/prefix/"))
    assert job.root_uri == "s3://bucket/prefix/default/job/"


def test_the_container_that_trains() -> None:
    assert trainer_index(full()["spec"]["template"]) == 0
    template = {"spec": {"containers": [{"name": "proxy"}, {"name": "trainer"}]}}
    assert trainer_index(template) == 1
    assert trainer_index(minimal()["spec"]["template"]) == 0


def test_times_have_whole_seconds_in_utc_so_that_what_is_read_back_is_equal() -> None:
    at = datetime(2026, 1, 1, 12, 0, 0, 999_999, tzinfo=UTC)
    condition = Condition(type="Running", status="True", last_transition_time=at)
    assert condition.dump()["lastTransitionTime"] == "2026-01-01T12:00:00Z"
    assert Condition.model_validate(condition.dump()) == condition


def test_conditions_are_found_by_type() -> None:
    status = TrainingJobStatus.model_validate(full_status())
    assert status.is_true("Running")
    assert not status.is_true("Failed")
    assert status.condition("Failed") is None
