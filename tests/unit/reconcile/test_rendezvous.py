"""A rendezvous service that somebody deleted comes back at its address; if it cannot, the gang is replaced."""

from __future__ import annotations

from dataclasses import replace

from everstep_operator.build import Launch, names
from everstep_operator.reconcile import decide
from everstep_operator.reconcile.observation import Observation, PodView, Problem, ProblemKind, Results
from everstep_operator.reconcile.plan import DeletePod, EnsureService, Fence
from tests.support.observations import at, beat, committed, job, observe, pod, running, service

KNOWN = "10.0.0.7"


def built(index: int) -> PodView:
    annotations = Launch(1, nodes=2, epoch=1, generation=1, rendezvous=KNOWN).annotations()
    return pod(index, annotations=annotations)


def seen(address: str | None) -> Observation:
    services = () if address is None else (replace(service(), cluster_ip=address),)
    gang = (built(0), built(1))
    return observe(job(running()), *gang, catalog=committed(10), heartbeat=beat(12), services=services)


def test_it_is_put_back_under_the_address_that_the_pods_know() -> None:
    (action,) = decide(seen(None)).actions
    assert isinstance(action, EnsureService)
    assert action.manifest["spec"]["clusterIP"] == KNOWN


def test_nothing_happens_where_it_has_that_address() -> None:
    plan = decide(seen(KNOWN))
    assert (plan.actions, plan.status.history) == ((), [])


def test_another_address_ends_the_attempt_uncounted() -> None:
    plan = decide(seen("10.0.0.8"))
    (entry,) = plan.status.history
    assert (entry.reason, entry.message) == (
        "RendezvousMoved",
        "the service job-rendezvous was deleted and is at 10.0.0.8 now; the pods know it at 10.0.0.7",
    )
    assert plan.status.restarts is not None
    assert (plan.status.restarts.total, plan.status.restarts.counted) == (1, 0)
    assert [type(action) for action in plan.actions] == [Fence, DeletePod, DeletePod]


def test_a_pods_annotation_that_somebody_edits_ends_nothing() -> None:
    edited = replace(built(0), annotations={**built(0).annotations, names.RENDEZVOUS: "10.9.9.9"})
    odd = replace(built(0), annotations={**built(0).annotations, names.RENDEZVOUS: "x"})
    for first in (edited, odd):
        plan = decide(replace(seen(KNOWN), pods=(first, built(1))))
        assert (plan.actions, plan.status.history) == ((), [])
    (action,) = decide(replace(seen(None), pods=(edited, built(1), built(2)))).actions
    assert isinstance(action, EnsureService)
    assert action.manifest["spec"]["clusterIP"] == KNOWN


def test_pods_that_do_not_tell_what_they_were_built_with_are_left_alone() -> None:
    plan = decide(observe(job(running()), pod(0), pod(1), catalog=committed(10), heartbeat=beat(12)))
    assert plan.status.history == []


def test_what_keeps_it_from_being_put_back_is_told_once() -> None:
    refused = Problem(ProblemKind.POD_REFUSED, "ServiceNameTaken", "a service job-rendezvous is not this job's")
    first = decide(seen(None))
    again = decide(replace(seen(None).written(first.status), results=Results(problem=refused)))
    condition = again.status.condition("Running")
    assert condition is not None
    assert (condition.status, condition.message) == ("True", f"all pods run; {refused.message}")
    trying = decide(replace(seen(None).written(again.status), now=at(60)))
    assert (trying.status, [type(action) for action in trying.actions]) == (again.status, [EnsureService])
    back = decide(seen(KNOWN).written(again.status)).status.condition("Running")
    assert back is not None
    assert back.message == "all pods run"
