"""Restarts of the workers in place: told by the claim's epoch, counted once, with the entry that they resumed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from everstep.catalog import Catalog, transitions
from everstep_operator.api.status import TrainingJobStatus
from everstep_operator.reconcile import decide
from everstep_operator.reconcile.observation import Results, Stored
from everstep_operator.reconcile.plan import ReadLogs
from tests.support.observations import at, beat, claimed, committed, crashed, fenced, job, observe, pod, running
from tests.unit.reconcile.test_torchrun import SUMMARY

PODS = (pod(0), pod(1))
ERROR = "Traceback (most recent call last):\n  File \"train.py\", line 3, in main\nKeyError: 'lr'\n"
KILLED = SUMMARY.splitlines()[0]


def again(catalog: Catalog, times: int = 1) -> Catalog:
    for n in range(times):
        catalog = claimed(catalog.attempt, catalog, f"again-{catalog.epoch}-{n}")
    return catalog


def counted(status: TrainingJobStatus) -> int:
    return status.restarts.in_place if status.restarts else 0


def told(catalog: Catalog, status: dict[str, Any] | None = None, **logs: str) -> TrainingJobStatus:
    names = {name.replace("_", "-"): text for name, text in logs.items()} or {"job-1-0": "", "job-1-1": ""}
    return decide(observe(job(status or running()), *PODS, catalog=catalog, results=Results(logs=names))).status


def test_the_first_claim_is_no_restart() -> None:
    unclaimed = running({"fence": {"attempt": 1, "epoch": 1, "generation": 1}})
    status = told(claimed(), unclaimed)
    assert counted(status) == 0
    assert status.fence is not None
    assert status.fence.claimed == 2


@pytest.mark.parametrize("times", [1, 2, 3])
def test_each_further_claim_is_counted_once(times: int) -> None:
    catalog = again(committed(30), times)
    status = told(catalog)
    assert counted(status) == times
    assert counted(told(catalog, status.dump())) == times
    assert counted(told(again(catalog), status.dump())) == times + 1


def test_claims_that_nobody_saw_are_counted_too() -> None:
    unclaimed = running({"fence": {"attempt": 1, "epoch": 1, "generation": 1}})
    assert counted(told(again(claimed(), 2), unclaimed)) == 2


def test_the_claimed_entry_is_shown() -> None:
    status = told(again(committed(30, 40)))
    assert status.resumed_from is not None
    assert status.resumed_from.step == 40
    assert status.resumed_from.location.startswith("s3://bucket/prefix/default/job/checkpoints/step_000000000040-")


def test_a_group_with_a_local_tier_is_counted_once_it_says_where_it_begins() -> None:
    """A save on the nodes is newer than the entry that the claim names, and it is where training goes on."""
    catalog = again(committed(30))
    spec = {"checkpoint__local": {"interval": {"steps": 1}, "sizeLimit": "1Gi"}}

    def shown(found: Catalog) -> TrainingJobStatus:
        names = {"job-1-0": "", "job-1-1": ""}
        return decide(observe(job(running(), **spec), *PODS, catalog=found, results=Results(logs=names))).status

    assert (counted(shown(catalog)), shown(catalog).resumed_from) == (0, job(running(), **spec).status.resumed_from)
    assert catalog.claim is not None
    local = "checkpoints/step_000000000037-000002-0123456789ab"
    status = shown(transitions.begin(catalog, catalog.claim.id, local))
    assert counted(status) == 1
    assert status.resumed_from is not None
    assert (status.resumed_from.step, status.resumed_from.location) == (37, f"local:{local}")
    elsewhere = shown(transitions.begin(catalog, catalog.claim.id, None))
    assert elsewhere.resumed_from is not None
    assert (counted(elsewhere), elsewhere.resumed_from.step) == (1, 30)
    unheard = committed(40, before=catalog)  # a script that goes without the loop never says it
    assert counted(shown(unheard)) == 1


def test_the_logs_are_read_before_the_count_and_once() -> None:
    first = decide(observe(job(running()), *PODS, catalog=again(committed(30))))
    assert (first.actions, first.again) == ((ReadLogs(("job-1-0", "job-1-1")),), True)
    assert counted(first.status) == 0
    many = tuple(pod(index) for index in range(100))
    large = decide(observe(job(running()), *many, catalog=again(committed(30))))
    (action,) = large.actions
    assert isinstance(action, ReadLogs)
    assert len(action.pods) == 64


@pytest.mark.parametrize(
    ("logs", "reason"),
    [
        (
            {"job_1_1": KILLED},
            "a worker of pod 1 on node-b was killed by SIGKILL (out of memory?); restarted in place",
        ),
        (
            {"job_1_1": ERROR + KILLED.replace("-9", "1")},
            "a worker of pod 1 on node-b failed: KeyError: 'lr'; restarted in place",
        ),
        ({"job_1_0": KILLED.replace("-9", "3")}, "a worker of pod 0 on node-a exited with code 3; restarted in place"),
        ({"job_1_0": ""}, "workers of attempt 1 restarted in place"),
    ],
)
def test_the_reason(logs: dict[str, Any], reason: str) -> None:
    status = told(again(committed(30)), **logs)
    assert status.restarts is not None
    assert status.restarts.last_reason == reason


def test_the_event() -> None:
    plan = decide(
        observe(job(running()), *PODS, catalog=again(committed(30)), results=Results(logs={"job-1-1": KILLED}))
    )
    (event,) = [event for event in plan.events if event.reason == "RestartedInPlace"]
    assert (event.key, event.message.endswith("restarted in place, resuming step 30")) == ("3", True)


def test_a_failing_attempt_does_not_wait_for_logs() -> None:
    plan = decide(observe(job(running()), pod(0), crashed(1), catalog=again(committed(30))))
    assert counted(plan.status) == 1
    assert plan.status.restarts is not None
    assert plan.status.restarts.total == 1


def test_a_new_attempt_starts_to_count_from_its_own_fence() -> None:
    before = {"restarts": {"inPlace": 4}, "history": [{"attempt": 1, "reason": "Error"}]}
    catalog = claimed(2, fenced(2, again(committed(30), 4)))
    pods = tuple(
        pod(i, 2, annotations={**pod(i, 2).annotations, "everstep.dev/epoch": str(catalog.epoch - 1)}) for i in (0, 1)
    )
    status = decide(observe(job(running(before)), *pods, catalog=catalog)).status
    assert (status.attempt, counted(status)) == (2, 4)


def test_its_recovery_is_measured_from_the_log_of_the_pod_whose_worker_died() -> None:
    catalog = again(committed(30))
    assert catalog.claim is not None
    claimed_at = catalog.claim.at
    read = Results(logs={"job-1-0": "", "job-1-1": KILLED}, failed_at={"job-1-1": claimed_at - timedelta(seconds=6.5)})
    before = job(running())
    plan = decide(observe(before, *PODS, catalog=catalog, heartbeat=beat(34), results=read))
    found = plan.status.recovery
    assert found is not None
    assert found.seconds is not None
    assert (found.attempt, found.lost_steps, found.seconds.dump()) == (1, 4, {"restart": 6.5})
    compiling = beat(30, epoch=3, first_step=None)
    plan = decide(observe(job(plan.status.dump()), *PODS, catalog=catalog, heartbeat=compiling))
    assert plan.status.recovery == found
    trains = beat(31, epoch=3, first_step=claimed_at + timedelta(seconds=2))
    plan = decide(observe(job(plan.status.dump()), *PODS, catalog=catalog, heartbeat=trains))
    assert plan.status.recovery is not None
    assert plan.status.recovery.seconds is not None
    assert plan.status.recovery.seconds.dump() == {"restart": 6.5, "load": 2.0, "total": 8.5}
    later = decide(observe(job(plan.status.dump()), *PODS, catalog=catalog, heartbeat=trains, now=at(99)))
    assert later.status.recovery == plan.status.recovery
    stopped = decide(observe(job(later.status.dump(), suspend=True), *PODS, catalog=catalog, heartbeat=trains)).status
    next_one = fenced(2, catalog)
    resumed = decide(observe(job(stopped.dump()), pod(0, 2), pod(1, 2), catalog=next_one, now=at(120)))
    assert resumed.status.recovery == plan.status.recovery, "the planned stop is no part of it"


def test_without_a_log_there_is_what_is_known() -> None:
    catalog = again(committed(30))
    assert catalog.claim is not None
    trains = beat(31, epoch=3, first_step=catalog.claim.at + timedelta(seconds=2))
    stored = Stored(catalog, trains, swept_age=1.0, former=beat(37).heartbeat)
    read = Results(logs={"job-1-0": "", "job-1-1": ""})
    plan = decide(observe(job(running()), *PODS, catalog=catalog, stored=stored, results=read))
    found = plan.status.recovery
    assert found is not None
    assert found.seconds is not None
    assert (found.lost_steps, found.seconds.dump()) == (7, {"load": 2.0})


def test_what_the_former_workers_left_in_their_pod_counts_where_no_beat_told_of_it() -> None:
    catalog = again(committed(30))
    assert catalog.claim is not None
    read = Results(logs={"job-1-0": "", "job-1-1": ""})
    plan = decide(observe(job(running()), *PODS, catalog=catalog, heartbeat=beat(34), results=read))
    trains = beat(31, epoch=3, former_step=38, first_step=catalog.claim.at + timedelta(seconds=2))
    plan = decide(observe(job(plan.status.dump()), *PODS, catalog=catalog, heartbeat=trains))
    assert plan.status.recovery is not None
    assert plan.status.recovery.lost_steps == 8
    rest = decide(observe(job(plan.status.dump(), suspend=True), *PODS, catalog=catalog, heartbeat=trains))
    assert rest.status.recovery == plan.status.recovery, "it is over, though nobody knows how long it took in all"
