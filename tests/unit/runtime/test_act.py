"""What is written, and how what comes back is understood."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everstep import errors
from everstep_operator.act.events import MESSAGE_LIMIT, _shortened, event_name
from everstep_operator.act.refusals import pod_problem
from everstep_operator.act.status import merge_patch
from everstep_operator.api import TrainingJob
from everstep_operator.config.profiles import Refusal, StorageRefusedError
from everstep_operator.kube import ApiError
from everstep_operator.reconcile.observation import ProblemKind
from everstep_operator.reconcile.plan import Event
from everstep_operator.storage import classify, classify_resume_path
from tests.support.trainingjobs import minimal

VALUES = st.recursive(
    st.integers() | st.text(max_size=3) | st.booleans(),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


def applied(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = applied(result.get(key), value)
    return result


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # other things run on this machine
@given(OBJECTS, OBJECTS)
def test_a_merge_patch_makes_the_one_into_the_other_and_is_empty_only_between_equals(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    patch = merge_patch(old, new)
    assert json.dumps(applied(old, patch), sort_keys=True) == json.dumps(new, sort_keys=True)
    assert bool(patch) == (json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True))


def test_an_event_has_one_name_for_one_cause() -> None:
    body = minimal()
    body["metadata"]["uid"] = "u"
    job = TrainingJob.parse(body)
    event = Event("Normal", "Running", "now", key="1")
    assert event_name(job, event) == event_name(job, Event("Warning", "Running", "later", key="1"))
    assert event_name(job, event) != event_name(job, Event("Normal", "Running", "now", key="2"))


def test_a_long_note_is_cut_to_what_the_api_server_takes() -> None:
    assert len(_shortened("é" * 2000).encode()) <= MESSAGE_LIMIT
    assert _shortened("short") == "short"


def test_refusals_of_a_pod_have_a_word_of_their_own() -> None:
    def word(status: int, message: str, reason: str = "Forbidden") -> tuple[ProblemKind, str]:
        problem = pod_problem(ApiError(status, reason, message))
        return problem.kind, problem.reason

    refused = ProblemKind.POD_REFUSED
    assert word(403, 'pods "x" is forbidden: exceeded quota: q') == (refused, "QuotaExceeded")
    assert word(403, 'pods "x" is forbidden: violates PodSecurity "restricted"') == (refused, "PodSecurityViolation")
    assert word(400, 'admission webhook "w" denied the request') == (refused, "AdmissionDenied")
    assert word(422, "spec.containers: Required value", "Invalid") == (refused, "PodInvalid")
    assert word(403, "cannot create resource pods") == (refused, "PodForbidden")
    assert word(500, "etcd") == (ProblemKind.CLUSTER, "ApiServerUnavailable")
    assert word(0, "no answer", "Unreachable") == (ProblemKind.CLUSTER, "ApiServerUnavailable")


def test_storage_errors_are_told_apart_and_bugs_are_not_storages() -> None:
    def kind(error: Exception) -> ProblemKind | None:
        problem = classify(error)
        return problem and problem.kind

    assert kind(errors.StorageUnavailableError("x")) is ProblemKind.UNAVAILABLE
    assert kind(errors.StorageRefusedError("x")) is ProblemKind.REFUSED
    assert kind(errors.StorageUnsafeError("x")) is ProblemKind.UNSAFE
    assert kind(errors.CatalogMissingError("x")) is ProblemKind.CATALOG_MISSING
    assert kind(errors.OwnerConflictError("x")) is ProblemKind.OWNER_CONFLICT
    assert kind(StorageRefusedError(Refusal.LOCATION, "x")) is ProblemKind.REFUSED
    assert kind(KeyError("a bug")) is None


def test_what_is_wrong_at_a_resume_path_is_the_paths_fault_unless_it_may_pass() -> None:
    refused = classify_resume_path(StorageRefusedError(Refusal.LOCATION, "not allowed"))
    assert refused is not None
    assert refused.kind is ProblemKind.RESUME_NOT_FOUND
    assert refused.message == "resume.path: not allowed"
    silent = classify_resume_path(errors.StorageUnavailableError("later"))
    assert silent is not None
    assert silent.kind is ProblemKind.UNAVAILABLE
