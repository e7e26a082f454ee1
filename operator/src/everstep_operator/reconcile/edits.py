"""Edits of a job that runs. The fields say themselves what an edit of them does; this policy has the gang do it.

What a pod was built from stands in its annotations. Where a field that needs a restart differs from it, the gang saves
and stops, and the next attempt resumes that save. Before that the API server is asked whether it would take the new
pod: a template that it refuses must not cost a gang that trains.
"""

from __future__ import annotations

from everstep_operator.api import Condition, ConditionType, TrainingJobStatus
from everstep_operator.api.common import Change
from everstep_operator.build import Launch, fingerprint, pod_manifest
from everstep_operator.reconcile import attempt as attempts
from everstep_operator.reconcile import conditions, history, planned
from everstep_operator.reconcile.attempt import Attempt
from everstep_operator.reconcile.observation import Observation, Problem
from everstep_operator.reconcile.plan import DryRunPod, Plan

QUOTA = "QuotaExceeded"
"""What the running gang itself uses up: no reason to refuse its successor."""


def plan(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> Plan | None:
    """The planned end of an attempt that an edit has overtaken; None where the attempt is to go on."""
    fields = changed(observation, attempt, "restart")
    if not fields or _refusal(observation, status) is not None or not planned.can_save(observation, attempt):
        return None
    if planned.has_begun_to_end(observation, attempt):
        return None
    results = observation.results
    if not results.dry_run and results.refused is None:
        number = attempts.next_number(observation)
        sample = Launch(number, observation.job.spec.nodes, epoch=0, generation=0)
        return Plan(status, actions=(DryRunPod(pod_manifest(observation.job, sample, 0)),), again=True)
    return planned.stop(observation, attempt, status, history.EDITED, f"{_told(fields)} changed")


def describe(observation: Observation, attempt: Attempt, status: TrainingJobStatus) -> TrainingJobStatus:
    """The status of a gang that goes on, with the condition SpecApplied where an edit does not reach it."""
    kind = ConditionType.SPEC_APPLIED
    refusal = _refusal(observation, status)
    restart, later = changed(observation, attempt, "restart"), changed(observation, attempt, "next-attempt")
    if restart and refusal is not None:
        if isinstance(refusal, Condition):
            return status
        message = f"{_told(restart)} changed, and attempt {attempt.number} goes on without it: {refusal.message}"
        return conditions.put(observation, status, kind, False, refusal.reason, message)
    if later and not restart:
        message = f"{_told(later)} changed: attempt {attempt.number} goes on with the former value, the next has it"
        return conditions.put(observation, status, kind, False, conditions.NEXT_ATTEMPT, message)
    if restart:
        return status
    return conditions.clear_to_true(observation, status, kind, "GangCurrent", "no pod differs from the spec")


def changed(observation: Observation, attempt: Attempt, how: Change) -> tuple[str, ...]:
    """Paths of the fields that are not what the attempt's pods were built from."""
    if attempt.ended:
        return ()
    return fingerprint.differences(observation.job.spec, (pod.annotations for pod in attempt.pods), how)


def _refusal(observation: Observation, status: TrainingJobStatus) -> Problem | Condition | None:
    """Why the API server does not take the new pods: told just now, or before and the spec is still the same."""
    found = observation.results.refused
    if found is not None and found.reason != QUOTA:
        return found
    before = status.condition(ConditionType.SPEC_APPLIED)
    if before is None or before.status != "False" or before.reason == conditions.NEXT_ATTEMPT:
        return None
    return before if before.observed_generation == observation.job.metadata.generation else None


def _told(fields: tuple[str, ...]) -> str:
    return ", ".join(f"spec.{path}" for path in fields)
