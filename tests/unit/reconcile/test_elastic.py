"""A gang that finds no room for all of its pods starts with those that it found room for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from everstep_operator.reconcile import decide
from everstep_operator.reconcile.observation import ConditionView, ContainerView, PodView
from everstep_operator.reconcile.plan import CreatePod, Plan
from tests.support.observations import (
    at,
    claimed,
    committed,
    crashed,
    ended,
    fenced,
    job,
    observe,
    pod,
    running,
    service,
)

WAITING = (ConditionView("PodScheduled", "False", "Unschedulable", "0/1 nodes are available"),)
ELASTIC = {"minNodes": 2, "maxNodes": 8}


def gang(placed: int, nodes: int = 4, **changes: Any) -> tuple[PodView, ...]:
    """Pending pods, the first few of them on a node."""
    pods = []
    for index in range(nodes):
        annotations = {**pod().annotations, "everstep.dev/nodes": str(nodes)}
        where = {"node": "node-a"} if index < placed else {"node": None, "conditions": WAITING}
        found = pod(index, phase="Pending", container=ContainerView(), annotations=annotations, created=at(-100))
        pods.append(replace(found, **where, **changes))
    return tuple(pods)


def timed_out(pods: tuple[PodView, ...], nodes: int = 4, elastic: dict[str, int] | None = None) -> Plan:
    status = running({"phase": "Starting", "gang": {"nodes": nodes, "started": at(-100).isoformat()}})
    spec: dict[str, Any] = {"nodes": 4, "failurePolicy__startTimeoutSeconds": 60, "elastic": elastic or ELASTIC}
    return decide(observe(job(status, **spec), *pods, catalog=fenced()))


@pytest.mark.parametrize(
    ("placed", "minimum", "expected"),
    [
        pytest.param(3, 2, 3, id="as many as had a node"),
        pytest.param(1, 2, 2, id="but at least minNodes"),
        pytest.param(0, 1, 1, id="though none had one"),
        pytest.param(4, 2, None, id="it was not for lack of room"),
    ],
)
def test_the_size_of_the_next_attempt(placed: int, minimum: int, expected: int | None) -> None:
    plan = timed_out(gang(placed), elastic={"minNodes": minimum, "maxNodes": 8})
    (entry,) = plan.status.history
    assert (entry.reason, entry.next_nodes) == ("StartTimeout", expected)
    made = next_gang(plan, elastic={"minNodes": minimum, "maxNodes": 8})
    assert made == (expected or 4)


def next_gang(plan: Plan, **spec: Any) -> int:
    """How many pods the next attempt is made of; each is told of all."""
    of = job(plan.status.dump(), **{"nodes": 4, "elastic": ELASTIC, **spec})
    created = [action for action in _after(of) if isinstance(action, CreatePod)]
    sizes = {
        variable["value"]
        for action in created
        for variable in action.manifest["spec"]["containers"][0]["env"]
        if variable["name"] == "PET_NNODES"
    }
    assert sizes == {str(len(created))}
    return len(created)


def _after(of: Any) -> tuple[Any, ...]:
    return decide(observe(of, catalog=fenced(2, fenced(1)), now=at(9999), services=(service(2),))).actions


def test_a_gang_without_elastic_waits_for_all_of_its_pods() -> None:
    status = running({"phase": "Starting", "gang": {"nodes": 4, "started": at(-100).isoformat()}})
    of = job(status, nodes=4, failurePolicy__startTimeoutSeconds=60)
    plan = decide(observe(of, *gang(3), catalog=fenced()))
    assert plan.status.history[0].next_nodes is None
    assert next_gang(plan, elastic=None) == 4


def test_what_follows_a_failure_keeps_the_size() -> None:
    small = running({"gang": {"nodes": 2, "started": at(-99).isoformat(), "running": at(-90).isoformat()}})
    plan = decide(observe(job(small, nodes=4, elastic=ELASTIC), pod(0), crashed(1), catalog=committed(30)))
    assert plan.status.history[0].next_nodes == 2
    assert next_gang(plan) == 2


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        pytest.param((crashed(0),), "RuntimeError", id="a script that fails at once"),
        pytest.param((), "PodDeleted", id="a pod that somebody deletes"),
    ],
)
def test_only_a_start_that_timed_out_tells_of_the_room(first: tuple[PodView, ...], reason: str) -> None:
    """The others were still to be scheduled."""
    status = running({"phase": "Starting", "gang": {"nodes": 4, "started": at(-5).isoformat()}})
    of = job(status, nodes=4, elastic=ELASTIC)
    plan = decide(observe(of, *first, *gang(1)[1:], catalog=fenced()))
    (entry,) = plan.status.history
    assert (entry.reason, entry.next_nodes) == (reason, None)


def test_a_full_gang_that_fails_stays_full() -> None:
    """A pod that lost its node while training tells nothing of the room that there is."""
    lost = replace(crashed(1), node=None)
    plan = decide(observe(job(running(), elastic={"minNodes": 1, "maxNodes": 2}), pod(0), lost, catalog=claimed()))
    assert plan.status.history[0].next_nodes is None


def test_a_planned_end_tries_all_of_them_again() -> None:
    small = running({"gang": {"nodes": 2, "started": at(-99).isoformat(), "running": at(-90).isoformat()}})
    of = job(small, nodes=4, elastic=ELASTIC, suspend=True)
    plan = decide(observe(of, pod(0), pod(1), catalog=committed(30)))
    assert (plan.status.history[0].reason, plan.status.history[0].next_nodes) == ("Suspended", None)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param({}, 3, id="as recorded"),
        pytest.param({"elastic": {"minNodes": 4, "maxNodes": 4}}, 4, id="a higher minimum since"),
        pytest.param({"elastic": None}, 4, id="elastic no more"),
        pytest.param({"nodes": 2}, 2, id="fewer nodes since"),
    ],
)
def test_an_edit_before_the_gang_is_made_counts(spec: dict[str, Any], expected: int) -> None:
    plan = timed_out(gang(3))
    assert next_gang(plan, **spec) == expected


def test_a_smaller_gang_says_so() -> None:
    small = running({"gang": {"nodes": 2, "started": at(-99).isoformat(), "running": at(-90).isoformat()}})
    plan = decide(observe(job(small, nodes=4, elastic=ELASTIC), pod(0), pod(1), catalog=committed(30)))
    condition = plan.status.condition("Running")
    assert condition is not None
    assert condition.message.startswith("all pods run; 2 of 4 nodes, as there was no room for more")
    full = decide(observe(job(running(), elastic=ELASTIC), pod(0), pod(1), catalog=committed(30))).status
    assert [each.message for each in full.conditions if each.type == "Running"] == ["all pods run"]


def test_the_size_is_that_of_the_entry_before_and_of_no_older_one() -> None:
    history = [
        {"attempt": 1, "reason": "StartTimeout", "nextNodes": 2},
        {"attempt": 2, "reason": "Suspended"},
    ]
    of = job(ended(2, history=history), nodes=4, elastic=ELASTIC)
    plan = decide(observe(of, catalog=fenced(3, fenced(2)), services=(service(3),)))
    assert sum(isinstance(action, CreatePod) for action in plan.actions) == 4
