"""From no gang to a whole one, step by step, and what stops it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from everstep.catalog import Catalog, Resume, Source
from everstep.catalog import transitions as t
from everstep_operator.api import Phase
from everstep_operator.build import names
from everstep_operator.reconcile import decide
from everstep_operator.reconcile.observation import NodeView, Observation, Problem, ProblemKind, Results, Stored
from everstep_operator.reconcile.plan import (
    Action,
    CreatePod,
    DeletePod,
    DryRunPod,
    EnsureService,
    Fence,
    Plan,
    Probe,
    ValidateResumePath,
)
from tests.support.observations import OWNER, at, claimed, committed, ended, failed, fenced, job, observe, pod, service

SOURCE = Source(root="s3://bucket/other", location=committed(5).checkpoints[0].location, step=5, digest="d")
FROM_PATH = {"resume": {"mode": "fromPath", "path": "s3://bucket/other/default/parent"}}
CHECKED = Results(probed=True, dry_run=True)


def kinds(plan: Plan) -> list[str]:
    return [type(action).__name__ for action in plan.actions]


def only(plan: Plan, kind: type[Action]) -> Any:
    (found,) = [action for action in plan.actions if isinstance(action, kind)]
    return found


@pytest.mark.parametrize(
    ("spec", "results", "expected"),
    [
        pytest.param({}, Results(), ["Probe", "DryRunPod"], id="asked first"),
        pytest.param({}, Results(probed=True), ["DryRunPod"], id="probed before"),
        pytest.param(FROM_PATH, Results(), ["Probe", "ValidateResumePath", "DryRunPod"], id="a path to look up"),
        pytest.param({}, CHECKED, ["Fence"], id="then fenced"),
        pytest.param(
            {"deletionPolicy": "Delete"}, CHECKED, ["AddFinalizer", "Fence"], id="a finalizer before anything"
        ),
    ],
)
def test_before_the_first_fence(spec: dict[str, Any], results: Results, expected: list[str]) -> None:
    plan = decide(observe(job(**spec), results=results))
    assert (kinds(plan), plan.again, plan.status.phase) == (expected, True, Phase.PENDING)


@pytest.mark.parametrize(
    ("spec", "results", "resume"),
    [
        ({}, CHECKED, Resume()),
        ({"resume": {"mode": "disable"}}, CHECKED, Resume(fresh=True)),
        (FROM_PATH, replace(CHECKED, resume=Resume(source=SOURCE)), Resume(source=SOURCE)),
    ],
)
def test_what_the_first_fence_resumes(spec: dict[str, Any], results: Results, resume: Resume) -> None:
    assert only(decide(observe(job(**spec), results=results)), Fence) == Fence(1, resume)


def test_a_later_fence_resumes_what_the_job_committed_whatever_the_spec_says() -> None:
    of = job(ended(), resume={"mode": "disable"})
    assert only(decide(observe(of, catalog=claimed())), Fence) == Fence(2, expected=1)


def test_a_recorded_checkpoint_forbids_to_create_a_catalog() -> None:
    last = {"step": 5, "location": "s3://bucket/prefix/default/job/x"}
    fence = only(decide(observe(job(ended(lastCheckpoint=last)), catalog=committed(5))), Fence)
    assert fence.expect_existing is True


@pytest.mark.parametrize(
    ("pods", "status", "catalog", "least"),
    [
        ((), ended(4), claimed(4), 5),
        ((failed(0, 7), failed(1, 7)), ended(7), claimed(4), 8),
        ((), ended(9), claimed(4), 10),
    ],
)
def test_an_attempt_is_one_more_than_all_that_are_known(
    pods: Any, status: dict[str, Any], catalog: Catalog, least: int
) -> None:
    assert only(decide(observe(job(status), *pods, catalog=catalog)), Fence).at_least == least


def test_a_former_job_of_the_same_name_is_taken_over() -> None:
    before = t.fence(Catalog(), OWNER.model_copy(update={"uid": "former"}), "f", 6)
    plan = decide(observe(catalog=before, results=CHECKED))
    assert only(plan, Fence) == Fence(1)
    assert plan.status.attempt == 0


def test_the_service_comes_before_the_pods_that_need_its_address() -> None:
    plan = decide(observe(catalog=fenced(), services=()))
    assert (kinds(plan), plan.again) == (["EnsureService"], True)
    stale = decide(observe(job(ended()), catalog=fenced(2), services=(service(1),)))
    assert only(stale, EnsureService).manifest["spec"]["selector"][names.ATTEMPT] == "2"


def test_a_gang_of_one_needs_no_service() -> None:
    assert kinds(decide(observe(job(nodes=1), catalog=fenced(), services=()))) == ["CreatePod"]


def test_the_gang_is_created_with_the_resume_point_of_the_fenced_document() -> None:
    catalog = fenced(2, committed(5, 9))
    plan = decide(observe(job(ended()), catalog=catalog))
    assert [action.name for action in plan.actions if isinstance(action, CreatePod)] == ["job-2-0", "job-2-1"]
    latest = catalog.latest()
    assert latest is not None
    for action in plan.actions:
        assert isinstance(action, CreatePod)
        annotations = action.manifest["metadata"]["annotations"]
        assert annotations[names.RESUME_PATH] == f"s3://bucket/prefix/default/job/{latest.location}"
        assert annotations[names.RESUME_STEP] == "9"
        assert annotations[names.EPOCH] == str(catalog.epoch)
    assert plan.again
    assert plan.status.attempt == 1, "the status tells of an attempt once its pods have been seen"


def test_the_rest_of_a_gang_is_built_like_its_siblings() -> None:
    sibling = pod(1, 2)
    annotations = {**sibling.annotations, names.RESUME_PATH: "s3://b/x", names.RESUME_STEP: "7", names.NODES: "3"}
    catalog = claimed(2, fenced(2, committed(5)))
    sibling = replace(sibling, annotations=annotations, created=at(-5))
    plan = decide(observe(job(ended()), sibling, catalog=catalog))
    creates = [action for action in plan.actions if isinstance(action, CreatePod)]
    assert [action.name for action in creates] == ["job-2-0", "job-2-2"]
    assert all(action.manifest["metadata"]["annotations"][names.RESUME_STEP] == "7" for action in creates)


def test_a_whole_gang_is_recorded_though_the_pass_that_made_it_was_killed() -> None:
    plan = decide(observe(job(ended()), pod(0, 2), pod(1, 2), catalog=fenced(2)))
    assert (plan.status.attempt, plan.status.phase, kinds(plan)) == (2, Phase.RUNNING, [])
    assert plan.status.fence is not None
    assert (plan.status.fence.attempt, plan.status.fence.epoch) == (2, 3)


@pytest.mark.parametrize(
    ("old", "creates"),
    [
        pytest.param(pod(0, 1), False, id="an older pod runs"),
        pytest.param(pod(0, 1, deleting=True, deletion_grace=1), False, id="it is being deleted"),
        pytest.param(failed(0, 1), True, id="it is terminal"),
        pytest.param(pod(0, 1, node="node-x", deleting=True), True, id="it is being deleted on a lost node"),
        pytest.param(pod(0, 1, node="node-x"), False, id="it is not even being deleted there"),
    ],
)
def test_no_gang_beside_an_older_one(old: Any, creates: bool) -> None:
    nodes = (NodeView("node-a"), NodeView("node-b"), NodeView("node-x", ready=False))
    plan = decide(observe(job(ended()), old, catalog=fenced(2), nodes=nodes))
    assert ("CreatePod" in kinds(plan)) is creates
    assert creates or plan.requeue_after is not None


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        (pod(0), [DeletePod("job-1-0", "pod-1-0", 1)]),
        (failed(0), [DeletePod("job-1-0", "pod-1-0", 1)]),
        (pod(0, deleting=True, deletion_grace=1), []),
        (pod(0, deleting=True, deletion_grace=30), [DeletePod("job-1-0", "pod-1-0", 1)]),
    ],
)
def test_older_pods_are_deleted_on_sight_with_a_short_grace(old: Any, expected: list[Action]) -> None:
    plan = decide(observe(job(ended()), old, catalog=fenced(2)))
    assert [action for action in plan.actions if isinstance(action, DeletePod)] == expected


def test_the_wait_for_a_back_off() -> None:
    status = ended(restarts={"total": 1, "nextTime": at(8).isoformat()})
    waiting = decide(observe(job(status), catalog=fenced(2)))
    assert (kinds(waiting), waiting.requeue_after) == ([], 8)
    condition = waiting.status.condition("Running")
    assert condition is not None
    assert condition.reason == "BackOff"
    assert kinds(decide(observe(job(status), catalog=fenced(2), now=at(8)))) == ["CreatePod", "CreatePod"]


def test_a_clock_that_was_ahead_holds_the_next_attempt_for_no_longer_than_the_back_off_may_last() -> None:
    status = ended(restarts={"total": 1, "nextTime": at(86_400).isoformat()})
    of = job(status, failurePolicy__backoff={"initialSeconds": 5, "maxSeconds": 40})
    plan = decide(observe(of, catalog=fenced(2)))
    assert plan.status.restarts is not None
    assert (plan.requeue_after, plan.status.restarts.next_time) == (40, at(40))
    waiting = decide(observe(job(plan.status.dump()), catalog=fenced(2), now=at(30)))
    assert (waiting.requeue_after, waiting.status.restarts) == (10, plan.status.restarts), "it is cut once"
    assert "CreatePod" in kinds(decide(observe(job(waiting.status.dump()), catalog=fenced(2), now=at(40))))


REFUSALS = [
    (ProblemKind.REFUSED, "StorageLocationNotAllowed"),
    (ProblemKind.UNSAFE, "StorageNotConditional"),
    (ProblemKind.RESUME_NOT_FOUND, "ResumePathNotFound"),
]


@pytest.mark.parametrize(("kind", "reason"), REFUSALS)
def test_what_ends_a_job_that_has_not_begun(kind: ProblemKind, reason: str) -> None:
    plan = decide(observe(results=Results(problem=Problem(kind, reason, "words"))))
    assert (plan.status.phase, kinds(plan), plan.again) == (Phase.FAILED, [], False)
    condition = plan.status.condition("Failed")
    assert condition is not None
    told = "words; to try again, delete the job and apply it anew"
    assert (condition.status, condition.reason, condition.message) == ("True", reason, told)


@pytest.mark.parametrize(("kind", "reason"), REFUSALS)
def test_the_same_does_not_end_a_job_that_has_trained(kind: ProblemKind, reason: str) -> None:
    stored = Stored(problem=Problem(kind, reason, "words"))
    plan = decide(observe(job(ended()), stored=stored))
    assert (plan.status.phase, kinds(plan)) == (Phase.RESTARTING, [])


@pytest.mark.parametrize(
    ("kind", "storage"),
    [
        (ProblemKind.UNAVAILABLE, True),
        (ProblemKind.CATALOG_MISSING, True),
        (ProblemKind.CATALOG_UNREADABLE, True),
        (ProblemKind.OWNER_CONFLICT, True),
        (ProblemKind.POD_REFUSED, False),
        (ProblemKind.CLUSTER, False),
    ],
)
def test_what_is_waited_for(kind: ProblemKind, storage: bool) -> None:
    plan = decide(observe(results=Results(problem=Problem(kind, "Why", "words"))))
    assert (plan.status.phase, kinds(plan), plan.again) == (Phase.PENDING, [], False)
    assert plan.requeue_after == 2
    running = plan.status.condition("Running")
    assert running is not None
    assert (running.status, running.reason, running.message) == ("False", "Why", "words")
    assert (plan.status.condition("StorageReady") is not None) is storage
    assert [event.reason for event in plan.events] == ["Why"]


@pytest.mark.parametrize(("later", "seconds"), [(0, 2), (10, 10), (3600, 60)])
def test_tries_get_rarer(later: float, seconds: float) -> None:
    problem = Results(problem=Problem(ProblemKind.UNAVAILABLE, "StorageUnavailable", "words"))
    first = decide(observe(results=problem))
    again = decide(observe(job(first.status.dump()), results=problem, now=at(later)))
    assert (again.requeue_after, again.events) == (seconds, ())
    assert again.status == first.status, "trying again is no news"


@pytest.mark.parametrize(("hindered", "seconds"), [(0, 2), (10, 10), (3600, 60)])
def test_a_recovery_that_the_cluster_refuses_once_does_not_wait_as_long_as_it_has_taken(
    hindered: float, seconds: float
) -> None:
    """A quota counts pods a moment after they are gone, and two API servers that count at once refuse one pod."""
    since = {"lastTransitionTime": at(-50).isoformat(), "reason": "Restarting"}
    status = ended(conditions=[{"type": "Running", "status": "False", **since}])
    refused = Results(problem=Problem(ProblemKind.POD_REFUSED, "QuotaExceeded", "exceeded quota"))
    seen = observe(job(status), catalog=fenced(2), results=refused, hindered=hindered)
    assert decide(seen).requeue_after == seconds


@pytest.mark.parametrize("kind", [ProblemKind.POD_REFUSED, ProblemKind.UNAVAILABLE])
def test_a_try_that_fails_again_writes_nothing(kind: ProblemKind) -> None:
    problem = Results(problem=Problem(kind, "Why", "words"))
    stuck = decide(observe(catalog=fenced(), results=problem)).status
    retry: Observation = observe(job(stuck.dump()), catalog=fenced(), now=at(9))
    assert kinds(decide(retry)) == ["CreatePod", "CreatePod"]
    assert decide(retry).status == stuck
    assert decide(replace(retry, results=problem)).status == stuck


def test_another_owners_catalog_is_left_alone_until_it_is_adopted() -> None:
    theirs = t.fence(Catalog(), OWNER.model_copy(update={"cluster": "elsewhere"}), "f", 3)
    refused = decide(observe(catalog=theirs, results=CHECKED))
    condition = refused.status.condition("StorageReady")
    assert condition is not None
    assert (kinds(refused), condition.reason) == ([], "OwnerConflict")
    assert "everstep.dev/adopt" in condition.message
    adopting = job(metadata={"annotations": {names.ADOPT: "true"}})
    assert only(decide(observe(adopting, catalog=theirs, results=CHECKED)), Fence).adopt is True


@pytest.mark.parametrize("pods", [(), (failed(0), failed(1))])
def test_a_missing_catalog_stops_the_job_until_it_is_back(pods: Any) -> None:
    status = ended(lastCheckpoint={"step": 5, "location": "s3://bucket/prefix/default/job/x"})
    plan = decide(observe(job(status), *pods))
    condition = plan.status.condition("StorageReady")
    assert condition is not None
    assert (condition.reason, plan.status.phase) == ("CatalogMissing", Phase.RESTARTING)
    assert "everstep rebuild s3://bucket/prefix/default/job/" in condition.message
    assert not {"Fence", "CreatePod", "Sweep", "Retire"} & set(kinds(plan))
    assert "Fence" in kinds(decide(observe(job(plan.status.dump()), *pods, catalog=committed(5))))


def test_a_dry_run_is_not_asked_for_while_a_failed_gang_may_use_up_the_quota() -> None:
    plan = decide(observe(job(ended()), pod(0), failed(1), catalog=claimed()))
    assert kinds(plan) == ["Fence", "DeletePod", "DeletePod"]


def test_it_is_asked_for_after_a_suspension() -> None:
    plan = decide(observe(job(ended(reason="Suspended")), catalog=claimed()))
    assert kinds(plan) == ["DryRunPod"]
    assert only(plan, DryRunPod).manifest["metadata"]["name"] == "job-2-0"


def test_a_job_that_another_controller_runs_is_left_alone() -> None:
    plan = decide(observe(job(managedBy="example.test/other")))
    assert plan == Plan(job().status)


def test_the_probe_comes_first() -> None:
    assert [type(a) for a in decide(observe(job(**FROM_PATH))).actions] == [Probe, ValidateResumePath, DryRunPod]
