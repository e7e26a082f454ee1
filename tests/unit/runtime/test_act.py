"""What is written, and how what comes back is understood."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everstep import errors
from everstep_operator.act import Actor, unreadable
from everstep_operator.act.actor import Chain
from everstep_operator.act.events import MESSAGE_LIMIT, PATIENCE, Events, _shortened, event_name
from everstep_operator.act.pods import Pods
from everstep_operator.act.refusals import pod_problem
from everstep_operator.act.status import merge_patch
from everstep_operator.api import InvalidJobError, TrainingJob
from everstep_operator.build import names, service_manifest
from everstep_operator.build.names import FINALIZER
from everstep_operator.config.profiles import Refusal, StorageRefusedError
from everstep_operator.kube import ApiError, Kube
from everstep_operator.memory import JobMemory
from everstep_operator.observe import Seen
from everstep_operator.reconcile.observation import Problem, ProblemKind, Results
from everstep_operator.reconcile.plan import CreatePod, DeletePod, EnsureService, Event, MarkPod
from everstep_operator.storage import classify, classify_resume_path
from tests.support.observations import UID, job
from tests.support.trainingjobs import minimal

VALUES = st.recursive(
    st.integers(min_value=2) | st.text(max_size=3) | st.booleans(),  # a field has one type: 0 never meets False
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
    meta = TrainingJob.parse(body).metadata
    event = Event("Normal", "Running", "now", key="1")
    assert event_name(meta, 1, event) == event_name(meta, 1, Event("Warning", "Running", "later", key="1"))
    assert event_name(meta, 1, event) != event_name(meta, 1, Event("Normal", "Running", "now", key="2"))


class Api:
    """The requests that were made, and a refusal for those that are to get one."""

    def __init__(self, refuse: int = 0, silent: bool = False) -> None:
        self._silent = silent
        self.patches: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self._refuse = refuse

    async def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert path.endswith("/status") is ("status" in body)
        self.patches.append(body)
        if self._refuse:
            raise ApiError(self._refuse, "Conflict" if self._refuse == 409 else "Invalid", "no")
        return body

    async def request(self, method: str, path: str, *, body: dict[str, Any], limit: float) -> dict[str, Any]:
        assert (method, path.rsplit("/", 1)[1], limit) == ("POST", "events", PATIENCE)
        self.events.append(body)
        if self._silent:
            raise ApiError(0, "Unreachable", "no answer in time")
        return body


async def test_events_wait_for_no_server_that_does_not_answer() -> None:
    body = minimal()
    body["metadata"]["uid"] = "u"
    meta = TrainingJob.parse(body).metadata
    told = [Event("Normal", "GangCreated", "m", "1"), Event("Normal", "Running", "m", "1")]
    silent, well = Api(silent=True), Api()
    await Events(cast(Kube, silent), "test").emit(meta, 1, told)
    await Events(cast(Kube, well), "test").emit(meta, 1, told)
    assert (len(silent.events), len(well.events)) == (1, 2)


async def told(api: Api, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidJobError) as caught:
        TrainingJob.parse(body)
    kube = cast(Kube, api)
    await unreadable.tell(kube, Events(kube, "test"), caught.value)


def unparsable(**spec: Any) -> dict[str, Any]:
    body = minimal()
    body["metadata"] |= {"uid": "u", "resourceVersion": "5", "generation": 3}
    kept = {"type": "Running", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    return {**body, "spec": {**body["spec"], "nodes": "two", **spec}, "status": {"conditions": [kept]}}


async def test_a_job_that_cannot_be_read_says_so_once_and_keeps_its_conditions() -> None:
    api, body = Api(), unparsable()
    await told(api, body)
    (patch,), (event,) = api.patches, api.events
    assert patch["metadata"] == {"resourceVersion": "5"}
    assert [item["type"] for item in patch["status"]["conditions"]] == ["Running", "Valid"]
    condition = patch["status"]["conditions"][1]
    assert (condition["status"], condition["reason"]) == ("False", "InvalidSpec")
    assert "spec.nodes" in condition["message"]
    assert (event["type"], event["reason"]) == ("Warning", "InvalidSpec")
    await told(api, {**body, "status": patch["status"]})
    assert (len(api.patches), len(api.events)) == (1, 1), "nothing at steady state"


async def test_a_job_of_another_controller_is_not_told_that_it_cannot_be_read() -> None:
    api = Api()
    await told(api, unparsable(managedBy="kueue.x-k8s.io/multikueue"))
    assert api.patches == api.events == []


async def test_a_job_that_cannot_be_read_may_be_deleted_and_its_checkpoints_stay() -> None:
    body = unparsable(deletionPolicy="Delete")
    body["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["other.test/x", FINALIZER]}
    api = Api()
    await told(api, body)
    (patch,), (event,) = api.patches, api.events
    assert patch == {"metadata": {"resourceVersion": "5", "finalizers": ["other.test/x"]}}
    assert (event["type"], event["reason"]) == ("Warning", "CheckpointsRetained")
    assert "stay under s3://bucket/prefix/default/job/: spec.nodes" in event["message"]
    await told(Api(refuse=409), body)
    with pytest.raises(ApiError):
        await told(Api(refuse=503), body)
    others = {**body, "metadata": {**body["metadata"], "finalizers": ["other.test/x"]}}
    nothing = Api()
    await told(nothing, others)
    assert nothing.patches == nothing.events == [], "nothing of ours holds it"
    odd = Api()
    await told(odd, {**body, "spec": "odd"})
    assert len(odd.patches) == 1


async def test_a_status_that_cannot_be_read_either_is_no_crash() -> None:
    broken: list[Any] = [None, [], {"conditions": "x"}, {"attempt": -1}]
    for status in broken:
        api = Api(refuse=422)
        await told(api, {**unparsable(), "status": status})
        assert len(api.events) == 1, "where the condition is refused, the event has to do"
    stale = Api(refuse=409)
    await told(stale, unparsable())
    assert stale.events == [], "the next look tells it"


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
        return None if problem is None else problem.kind

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


class Meddler:
    """An API server whose webhook puts its own labels and selector in the place of what is asked for."""

    def __init__(self, **answer: Any) -> None:
        self.answer = answer
        self.asked: list[Any] = []

    async def find(self, _path: str) -> None:
        return None

    async def patch(self, _path: str, body: Any, **_: str) -> Any:
        self.asked.append(body)
        return {**body, "metadata": {**body["metadata"], "resourceVersion": "7"}, **self.answer}


@pytest.mark.parametrize(
    ("selector", "lost"),
    [
        ({names.JOB_UID: UID, names.ATTEMPT: "1", names.INDEX: "0", "mesh": "in"}, None),
        ({names.JOB_UID: UID, names.ATTEMPT: "1", names.INDEX: "1"}, "selector.everstep.dev/index"),
        (None, "selector.everstep.dev/attempt, selector.everstep.dev/index, selector.everstep.dev/job-uid"),
    ],
)
async def test_a_service_that_a_webhook_makes_useless_is_named(
    selector: dict[str, str] | None, lost: str | None
) -> None:
    kube, seen, memory = Meddler(spec={"clusterIP": "1.2.3.4", "selector": selector}), Seen({}, job()), JobMemory(UID)
    ensure = EnsureService("job-rendezvous", service_manifest(seen.job, 1))
    problem = await Pods(cast(Kube, kube)).ensure_service(seen, memory, ensure)
    assert (problem.message.split(": ")[1] if problem else None) == lost
    assert memory.applied == "7"


async def test_a_service_is_changed_only_if_it_is_the_one_that_was_seen() -> None:
    kube, seen = Meddler(), Seen({}, job())
    manifest = service_manifest(seen.job, 1, "1.2.3.4")
    seen.service = {"metadata": {"name": "job-rendezvous", "uid": "s", "labels": names.labels("job", UID, 1)}}
    assert await Pods(cast(Kube, kube)).ensure_service(seen, JobMemory(UID), EnsureService("x", manifest)) is None
    assert kube.asked[0]["metadata"] == {**manifest["metadata"], "uid": "s"}
    seen.service = {"metadata": {"name": "job-rendezvous", "uid": "t"}}
    problem = await Pods(cast(Kube, kube)).ensure_service(seen, JobMemory(UID), EnsureService("x", manifest))
    assert (problem.reason if problem else None, len(kube.asked)) == ("ServiceNameTaken", 1)


async def test_labels_that_a_webhook_takes_away_again_are_a_refusal() -> None:
    seen, labels = Seen({}, job()), names.pod_labels("job", UID, 1, 0)
    mark = MarkPod("job-1-0", "5", labels)
    assert await Pods(cast(Kube, Meddler())).mark(seen, JobMemory(UID), mark) is None
    meddler = Meddler(metadata={"resourceVersion": "7", "labels": {}})
    problem = await Pods(cast(Kube, meddler)).mark(seen, JobMemory(UID), mark)
    assert problem is not None
    assert (problem.kind, problem.reason) == (ProblemKind.POD_REFUSED, "PodLabelsTaken")
    assert await Pods(cast(Kube, Meddler())).mark(seen, JobMemory(UID), replace(mark, owner=True)) is None
    disowned = Meddler(metadata={"resourceVersion": "7", "labels": labels, "ownerReferences": []})
    problem = await Pods(cast(Kube, disowned)).mark(seen, JobMemory(UID), replace(mark, owner=True))
    assert problem is not None
    assert (problem.reason, "takes the owner away" in problem.message) == ("PodLabelsTaken", True)


class Protected:
    """An API server whose webhook lets nobody delete a pod."""

    def __init__(self) -> None:
        self.created: list[str] = []

    async def create(self, _path: str, body: Any, **_: str) -> Any:
        self.created.append(body["metadata"]["name"])
        return body

    async def delete(self, path: str, _body: Any) -> Any:
        raise ApiError(403, "Forbidden", f"an admission webhook protects {path}")


async def test_a_pod_that_cannot_be_deleted_keeps_no_other_from_being_created() -> None:
    """Where it is in the way, no creation is planned."""
    kube: Any = Protected()
    memory, parts = JobMemory(UID), cast(Any, None)
    chain = Chain(Seen({}, job()), memory, Problem(ProblemKind.UNAVAILABLE, "x", "x"), "cluster", Results())
    create = CreatePod("job-2-0", {"metadata": {"name": "job-2-0"}})
    problem = await Actor(kube, parts, parts, parts).run(chain, [DeletePod("job-1-0", "u"), create])
    assert (problem.reason if problem else None, kube.created) == ("Forbidden", ["job-2-0"])


async def test_a_pod_that_a_former_job_left_behind_for_good_is_named() -> None:
    """Somebody deleted that job and orphaned its pods: they never go by themselves."""
    labels = {names.JOB: "job", names.JOB_UID: "former"}
    standing: dict[str, Any] = {"name": "job-1-0", "labels": labels, "resourceVersion": "5"}

    class Taken(Meddler):
        async def create(self, _path: str, _body: Any, **_: str) -> Any:
            raise ApiError(409, "AlreadyExists", "exists")

        async def find(self, _path: str) -> Any:
            return {"metadata": standing}

    manifest = {"metadata": {"labels": names.pod_labels("job", UID, 1, 0)}}
    owners = [{"kind": "TrainingJob", "uid": "former"}]
    for more, reason in (
        ({"ownerReferences": owners}, "FormerJobLeaving"),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, "FormerJobLeaving"),
        ({}, "PodNameTaken"),
    ):
        standing = {"name": "job-1-0", "labels": labels, "resourceVersion": "5", **more}
        pods = Pods(cast(Kube, Taken()))
        problem = await pods.create(Seen({}, job()), JobMemory(UID), [CreatePod("job-1-0", manifest)])
        assert (problem.reason if problem else None) == reason
