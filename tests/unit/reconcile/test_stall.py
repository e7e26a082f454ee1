"""A standstill in each phase is found at its own limit, and nothing else is taken for one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from everstep_operator.reconcile import decide, stall
from everstep_operator.reconcile.attempt import current
from everstep_operator.reconcile.observation import HeartbeatView, Observation, Problem, ProblemKind, Stored
from everstep_operator.reconcile.plan import DeletePod, Fence
from everstep_operator.reconcile.teardown import STALL_GRACE
from tests.support.observations import at, beat, claimed, fenced, job, observe, pod, running
from tests.support.troubleshooting import explains

LIMITS: dict[str, Any] = {
    "starting": 10,
    "restoring": 20,
    "compiling": 30,
    "saving": 40,
    "evaluating": 50,
    "finished": 55,
}
POLICY: dict[str, Any] = {"failurePolicy__stallTimeoutSeconds": 60, "failurePolicy__phaseTimeoutSeconds": LIMITS}


def seen(found: HeartbeatView | None, status: dict[str, Any] | None = None, **spec: Any) -> Observation:
    of = job(running(status), **{**POLICY, **spec})
    return observe(of, pod(0), pod(1), catalog=claimed(), heartbeat=found)


def message(observation: Observation) -> str | None:
    attempt = current(observation)
    found = observation.stored.heartbeat
    cause = stall.find(observation, attempt, found)
    return cause.message if cause else None


@pytest.mark.parametrize(
    ("content", "limit", "words"),
    [
        (
            {"phase": "starting"},
            10,
            "starting for more than 10 s at step 7 (failurePolicy.phaseTimeoutSeconds.starting)",
        ),
        ({"phase": "restoring"}, 20, "restoring for more than 20 s"),
        ({"phase": "training", "first_step": None}, 30, "compiling for more than 30 s"),
        ({"phase": "compiling"}, 30, "compiling for more than 30 s"),
        ({"phase": "saving"}, 40, "saving for more than 40 s at step 7"),
        ({"phase": "evaluating"}, 50, "evaluating for more than 50 s"),
        ({"phase": "training"}, 60, "no new step for 60 s since step 7 (failurePolicy.stallTimeoutSeconds)"),
        ({"phase": "finished"}, 55, "the workers finished at step 7, but their pods have not ended for 55 s"),
        ({"phase": "failed"}, 60, "the workers failed at step 7, but their pods have not ended for 60 s"),
    ],
)
def test_each_phase_has_its_limit(content: dict[str, Any], limit: int, words: str) -> None:
    assert message(seen(beat(7, still=limit - 0.1, **content))) is None
    told = message(seen(beat(7, still=limit, **content)))
    assert told is not None
    assert words in told
    assert explains(stall.REASON, told)
    assert "without a sign of life" not in told
    frozen = message(seen(beat(7, beat_age=limit, **content)))
    assert frozen is not None
    assert "without a sign of life" in frozen


@pytest.mark.parametrize("phase", ["starting", "restoring", "saving", "evaluating", "finished"])
def test_a_limit_of_nought_is_none(phase: str) -> None:
    off: dict[str, Any] = {f"failurePolicy__phaseTimeoutSeconds__{phase}": 0}
    assert message(seen(beat(7, still=10**6, phase=phase), **off)) is None
    assert message(seen(beat(7, still=10**6), failurePolicy__stallTimeoutSeconds=0)) is None


def test_a_gang_that_failed_ends_though_steps_have_no_limit() -> None:
    """It trains no more: what hangs is its end, as of a group that waits for each other to abort."""
    off: dict[str, Any] = {"failurePolicy__stallTimeoutSeconds": 0}
    assert message(seen(beat(7, still=54, phase="failed"), **off)) is None
    told = message(seen(beat(7, still=55, phase="failed"), **off))
    assert told is not None
    assert "have not ended for 55 s" in told
    assert "(failurePolicy.phaseTimeoutSeconds.finished)" in told


@pytest.mark.parametrize(
    ("since", "absent", "found"),
    [
        (-9, 100.0, False),
        (-10, 100.0, True),
        pytest.param(-3600, 9.0, False, id="an operator that has looked for 9 s knows of no more"),
        pytest.param(-3600, None, False, id="storage was not asked"),
    ],
)
def test_workers_that_never_show_a_heartbeat(since: float, absent: float | None, found: bool) -> None:
    gang = {"nodes": 2, "started": at(-7200).isoformat(), "running": at(since).isoformat()}
    observation = observe(
        job(running({"gang": gang}), **POLICY),
        pod(0),
        pod(1),
        stored=Stored(catalog=fenced(), heartbeat_absent=absent, swept_age=1.0),
    )
    told = stall.find(observation, current(observation), None)
    assert (told is not None) is found
    if told is not None:
        assert told.message.startswith("all pods run, but no heartbeat has come for 10 s")
        assert explains(stall.REASON, told.message)


def test_pods_that_wait_for_their_image_are_not_starting_in_this_sense() -> None:
    gang = {"nodes": 2, "started": at(-7200).isoformat()}
    observation = observe(
        job(running({"phase": "Starting", "gang": gang}), **POLICY, failurePolicy__startTimeoutSeconds=0),
        pod(0),
        pod(1, phase="Pending"),
        stored=Stored(catalog=fenced(), heartbeat_absent=1e6, swept_age=1.0),
    )
    assert decide(observation).status.history == []


def test_nothing_is_said_while_storage_gives_no_answer() -> None:
    problem = Problem(ProblemKind.UNAVAILABLE, "StorageUnavailable", "no answer")
    stored = Stored(catalog=claimed(), heartbeat=beat(7, beat_age=10**6), problem=problem, swept_age=1.0)
    observation = observe(job(running(), **POLICY), pod(0), pod(1), stored=stored)
    assert decide(observation).status.history == []


def test_a_suspended_job_does_not_stall() -> None:
    status = {
        "phase": "Suspended",
        "attempt": 1,
        "history": [{"attempt": 1, "reason": "Suspended", "message": "suspended"}],
    }
    observation = observe(job(status, suspend=True, **POLICY), catalog=claimed(), heartbeat=beat(7, beat_age=10**6))
    plan = decide(observation)
    assert (plan.status.phase, plan.actions) == ("Suspended", ())


def test_the_end_of_a_stalled_attempt_names_phase_and_limit() -> None:
    plan = decide(seen(beat(7, still=40, phase="saving")))
    (entry,) = plan.status.history
    assert (entry.reason, entry.to_step) == ("Stalled", 7)
    assert "saving for more than 40 s" in (entry.message or "")
    assert (entry.message or "").endswith("; stacks of its ranks: progress/000001/stacks-*.txt under the job's root")
    assert plan.status.is_true("Stalled")
    assert [event.reason for event in plan.events] == ["GangFailed"]


def test_its_pods_have_the_time_to_tell_what_their_ranks_were_at() -> None:
    plan = decide(seen(beat(7, still=60)))
    deletes = [action for action in plan.actions if isinstance(action, DeletePod)]
    assert [action.grace for action in deletes] == [STALL_GRACE, STALL_GRACE]
    assert isinstance(plan.actions[0], Fence), "by which they know that they were given up"
    leaving = replace(pod(0), deleting=True, deletion_grace=STALL_GRACE)
    after = decide(observe(job(plan.status.dump()), leaving, catalog=fenced(2, claimed())))
    assert not [action for action in after.actions if isinstance(action, DeletePod)], "which is not cut short"
