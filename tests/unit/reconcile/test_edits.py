"""Edits of a job that runs: what each field of the spec says of itself is what a decision does with an edit of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from everstep_operator.api import TrainingJob
from everstep_operator.api.fields import changing, spec_fields
from everstep_operator.build import fingerprint, names
from everstep_operator.reconcile import decide
from everstep_operator.reconcile.observation import Observation, PodView, Problem, ProblemKind, Results, Stored
from everstep_operator.reconcile.plan import DeletePod, DryRunPod, Plan
from tests.support.observations import at, beat, committed, fenced, job, observe, pod, running, succeeded
from tests.support.trainingjobs import full

EDITS: dict[str, Any] = {
    "suspend": None,  # a policy of its own
    "ttlSecondsAfterFinished": 5,
    "deletionPolicy": "Retain",
    "template": {"spec": {"containers": [{"name": "main", "image": "example.test/train:2"}]}},
    "nodes": 3,
}
"""Values other than those of the full manifest, where that does not do."""


PARENTS: dict[str, dict[str, Any]] = {
    "checkpoint.keepBest": {"count": 1, "metric": "loss", "mode": "min"},
    "checkpoint.interval": {"steps": 50, "seconds": 500},
    "checkpoint.local": {"interval": {"steps": 5}, "medium": "Memory", "sizeLimit": "1Gi"},
    "elastic": {"minNodes": 2, "maxNodes": 2},
}
"""Objects that have no good form with a single field in them."""


def edits(path: str) -> dict[str, Any]:
    """The edit of one field as `job` takes it: to what the full manifest has, which is never the default."""
    node: Any = full()["spec"]
    for name in path.split("."):
        node = node[name]
    wanted, parent = EDITS.get(path, node), path.rpartition(".")[0]
    if parent in PARENTS:
        return {parent.replace(".", "__"): PARENTS[parent] | {path.split(".")[-1]: wanted}}
    return {path.replace(".", "__"): wanted}


def before(path: str) -> dict[str, Any]:
    parent = path.rpartition(".")[0]
    return {parent.replace(".", "__"): PARENTS[parent]} if parent in PARENTS else {}


def built(of: TrainingJob, *pods: PodView) -> tuple[PodView, ...]:
    """The pods as they were built from that job."""
    text = fingerprint.write(of.spec)
    return tuple(replace(each, annotations={**each.annotations, names.SPEC: text}) for each in pods)


def edited(path: str, **changes: Any) -> Observation:
    """A gang of two that runs, and one field of its job edited since."""
    gang = built(job(running(), **before(path)), pod(0), pod(1))
    return observe(
        job(running(), {"generation": 2}, **before(path) | edits(path)), *gang, catalog=committed(30), **changes
    )


def kinds(plan: Plan) -> list[str]:
    return [type(action).__name__ for action in plan.actions]


@pytest.mark.parametrize("path", changing("restart"))
def test_a_field_that_needs_a_restart_stops_the_gang_with_time_to_save(path: str) -> None:
    first = decide(edited(path))
    assert kinds(first) == ["DryRunPod"]
    assert first.status.history == []
    plan = decide(edited(path, results=Results(dry_run=True)))
    assert plan.actions == (DeletePod("job-1-0", "pod-1-0", None), DeletePod("job-1-1", "pod-1-1", None))
    (entry,) = plan.status.history
    assert (entry.reason, entry.message) == ("Edited", f"spec.{path} changed")
    assert plan.status.restarts is not None
    assert plan.status.restarts.total == 0
    assert [event.reason for event in plan.events if event.type == "Normal"] == ["Edited", "CheckpointCommitted"]


@pytest.mark.parametrize("path", [path for path in changing("live") if path != "suspend"])
def test_a_live_field_leaves_the_gang_alone_and_asks_for_no_attempt(path: str) -> None:
    plan = decide(edited(path))
    assert not {"DeletePod", "DryRunPod", "Fence", "CreatePod"} & set(kinds(plan))
    assert (plan.status.history, plan.status.attempt) == ([], 1)
    assert plan.status.condition("SpecApplied") is None


@pytest.mark.parametrize("path", changing("next-attempt"))
def test_a_field_for_the_next_attempt_leaves_the_gang_alone_and_says_so(path: str) -> None:
    plan = decide(edited(path))
    assert kinds(plan) == []
    condition = plan.status.condition("SpecApplied")
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "NextAttempt")
    assert condition.message == f"spec.{path} changed: attempt 1 goes on with the former value, the next has it"
    assert ("Normal", "NextAttempt") in {(event.type, event.reason) for event in plan.events}
    resting = decide(replace(edited(path), job=edited(path).job.model_copy(update={"status": plan.status})))
    assert (resting.status, resting.events) == (plan.status, ())


def test_every_field_of_the_spec_is_of_one_kind_with_a_test_above_or_refused() -> None:
    known = {
        path for how in ("live", "restart", "next-attempt", "first-attempt", "immutable") for path in changing(how)
    }
    leaves = {field.path for field in spec_fields() if field.is_leaf}
    below = {path for path in leaves if any(path.startswith((f"{top}.", f"{top}[]")) for top in known)}
    assert leaves - known - below == set()


def test_the_next_attempt_waits_for_the_save_and_has_the_new_value() -> None:
    stopping = decide(edited("nodes", results=Results(dry_run=True))).status.dump()
    after = job(stopping, {"generation": 2}, nodes=3)
    saving = built(job(), pod(0, deleting=True, deletion_grace=30), succeeded(1))
    waiting = decide(observe(after, *saving, catalog=committed(30)))
    assert "Fence" not in kinds(waiting)
    assert (waiting.status.phase, waiting.requeue_after) == ("Restarting", 5.0)
    condition = waiting.status.condition("Running")
    assert condition is not None
    assert condition.message == "waiting for job-1-0 to save and stop"
    gone = decide(
        observe(job(waiting.status.dump(), nodes=3), catalog=committed(30, 37), results=Results(dry_run=True))
    )
    assert kinds(gone) == ["Fence"]
    made = decide(observe(job(gone.status.dump(), nodes=3), catalog=fenced(2, committed(30, 37))))
    assert kinds(made) == ["CreatePod", "CreatePod", "CreatePod"]


def test_what_the_api_server_refuses_does_not_cost_the_gang() -> None:
    refused = Problem(ProblemKind.POD_REFUSED, "PodInvalid", "spec.containers[0].volumeMounts[0].name: Not found: data")
    plan = decide(edited("template", results=Results(problem=refused, refused=refused)))
    assert kinds(plan) == []
    assert (plan.status.phase, plan.status.history) == ("Running", [])
    condition = plan.status.condition("SpecApplied")
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "PodInvalid")
    assert condition.message.startswith("spec.template changed, and attempt 1 goes on without it: spec.containers[0]")
    assert [(event.type, event.reason) for event in plan.events][:1] == [("Warning", "PodInvalid")]
    same = edited("template")
    resting = decide(replace(same, job=same.job.model_copy(update={"status": plan.status})))
    assert (resting.status.condition("SpecApplied"), resting.actions) == (condition, ())
    meta = same.job.metadata.model_copy(update={"generation": 3})
    again = decide(replace(same, job=same.job.model_copy(update={"status": plan.status, "metadata": meta})))
    assert kinds(again) == ["DryRunPod"], "a further edit is a further try"


def test_a_quota_that_the_gang_itself_uses_up_is_no_refusal() -> None:
    full_up = Problem(ProblemKind.POD_REFUSED, "QuotaExceeded", "exceeded quota: pods")
    plan = decide(edited("template", results=Results(problem=full_up, refused=full_up)))
    assert kinds(plan) == ["DeletePod", "DeletePod"]
    assert plan.status.history[0].reason == "Edited"


def test_what_is_refused_to_the_service_says_nothing_about_the_edit() -> None:
    forbidden = Problem(ProblemKind.POD_REFUSED, "PodForbidden", "services is forbidden")
    plan = decide(edited("template", services=(), results=Results(problem=forbidden)))
    assert (kinds(plan), plan.status.condition("SpecApplied")) == (["DryRunPod"], None)
    ending = {"heartbeat": beat(30, phase="finished", total_steps=30)}
    plan = decide(edited("template", services=(), results=Results(problem=forbidden), **ending))
    assert plan.status.condition("SpecApplied") is None


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {"stored": Stored(problem=Problem(ProblemKind.UNAVAILABLE, "StorageUnavailable", "no"))}, id="storage"
        ),
        pytest.param({"heartbeat": beat(30, phase="finished", total_steps=30)}, id="the training is at its end"),
        pytest.param(
            {"results": Results(problem=Problem(ProblemKind.CLUSTER, "ApiServerUnavailable", "no"))}, id="api"
        ),
    ],
)
def test_a_gang_that_could_not_save_or_is_about_to_succeed_is_not_stopped(changes: dict[str, Any]) -> None:
    plan = decide(edited("template", **changes))
    assert not {"DeletePod", "DryRunPod"} & set(kinds(plan))
    assert plan.status.history == []


def test_an_edit_mends_a_gang_that_cannot_start() -> None:
    """Pods that wait for an image that does not exist; the user corrects its name."""
    starting = running({"phase": "Starting"})
    starting["gang"] = {"nodes": 2, "started": at(-60).isoformat()}
    waiting = built(job(), pod(0, phase="Pending", container=pod().container.__class__()), pod(1, phase="Pending"))
    after = job(starting, **edits("template"))
    plan = decide(observe(after, *waiting, catalog=fenced(), results=Results(dry_run=True)))
    assert kinds(plan) == ["DeletePod", "DeletePod"]
    assert plan.status.history[0].reason == "Edited"


def test_a_gang_that_is_half_made_is_not_completed_from_another_template() -> None:
    (first,) = built(job(), pod(0, created=at(-60)))
    plan = decide(observe(job(**edits("template")), first, catalog=fenced(), results=Results(dry_run=True)))
    assert kinds(plan) == ["DeletePod"]
    assert [(entry.attempt, entry.reason) for entry in plan.status.history] == [(1, "Edited")]


def test_to_take_an_edit_back_is_no_edit() -> None:
    told = decide(edited("checkpoint.interval.steps")).status
    gang = built(job(), pod(0), pod(1))
    plan = decide(observe(job(told.dump(), {"generation": 3}), *gang, catalog=committed(30)))
    assert plan.status.is_true("SpecApplied")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"nodes":7}', json.dumps({"wings": "0a"})])
def test_pods_of_another_operator_or_with_a_spoilt_annotation_are_left_alone_unless_a_field_differs(text: str) -> None:
    gang = tuple(replace(each, annotations={**each.annotations, names.SPEC: text}) for each in (pod(0), pod(1)))
    plan = decide(observe(job(running()), *gang, catalog=committed(30)))
    assert kinds(plan) == (["DryRunPod"] if "nodes" in text else [])
    without = decide(observe(job(running()), pod(0), pod(1), catalog=committed(30)))
    assert kinds(without) == []


def test_the_sample_is_the_pod_that_the_next_attempt_would_have() -> None:
    (action,) = decide(edited("template")).actions
    assert isinstance(action, DryRunPod)
    assert action.manifest["metadata"]["name"] == "job-2-0"
    assert action.manifest["spec"]["containers"][0]["image"] == "example.test/train:2"
