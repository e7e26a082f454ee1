"""For each field of the spec, the tests that prove what it does; docs/fields.md shows them, and a test keeps them true.

Paths are those of `everstep_operator.api.fields`; a test is named by its file and, in brackets, its parameters.
"""

from __future__ import annotations

from typing import Final

_EFFECTS = "tests/operator/runtime/test_effects.py::"
_EDITS = "tests/operator/runtime/test_edits.py::"
_ATTEMPTS = "tests/operator/runtime/test_attempts.py::"
_FAULTS = "tests/operator/runtime/test_faults.py::"
_UNIT = "tests/unit/reconcile/test_"
_POLICY = "tests/unit/checkpoint/test_policy.py::"

_REFUSALS = "tests/operator/api/test_refusals.py::test_a_bad_field_is_refused_by_its_path_and_its_twin_is_accepted"
_MADE = f"{_EFFECTS}test_pods_are_made_from"
_RULE = f"{_EFFECTS}test_a_rule_decides_about_a_failure_that_it_matches"
_CONDITION = f"{_EFFECTS}test_a_rule_matches_a_condition_of_the_failed_pod"
_STALL = f"{_UNIT}stall.py::test_each_phase_has_its_limit"

EFFECTS: Final[dict[str, tuple[str, ...]]] = {
    "nodes": (f"{_MADE}[nodes]", f"{_EDITS}test_kubectl_scale_gives_the_gang_another_size"),
    "procPerNode": (f"{_MADE}[procPerNode]",),
    "elastic.minNodes": (
        f"{_FAULTS}test_an_elastic_gang_starts_with_the_pods_that_there_is_room_for",
        f"{_UNIT}elastic.py::test_the_size_of_the_next_attempt",
    ),
    "elastic.maxNodes": (f"{_REFUSALS}[spec.nodes: rule0]",),
    "suspend": (f"{_ATTEMPTS}test_suspend_saves_stops_and_resumes_where_it_stopped",),
    "template": (f"{_MADE}[template]",),
    "checkpoint.storage.uri": (
        f"{_MADE}[checkpoint.storage.uri]",
        f"{_FAULTS}test_storage_outside_the_profile_ends_the_job_before_any_request",
    ),
    "checkpoint.storage.endpoint": (f"{_MADE}[checkpoint.storage.endpoint]",),
    "checkpoint.storage.region": (f"{_MADE}[checkpoint.storage.region]",),
    "checkpoint.storage.secretName": (f"{_MADE}[checkpoint.storage.secretName]",),
    "checkpoint.interval.steps": (
        f"{_MADE}[checkpoint.interval.steps]",
        f"{_POLICY}test_saves_fall_due_by_steps",
    ),
    "checkpoint.interval.seconds": (
        f"{_MADE}[checkpoint.interval.seconds]",
        f"{_POLICY}test_saves_fall_due_by_seconds",
    ),
    "checkpoint.async": (f"{_MADE}[checkpoint.async]", f"{_POLICY}test_training_waits_for_a_save_or_does_not"),
    "checkpoint.keepLast": (f"{_ATTEMPTS}test_retention_keeps_what_it_was_told_to",),
    "checkpoint.keepBest.count": (f"{_EFFECTS}test_keep_best_keeps_so_many",),
    "checkpoint.keepBest.metric": (
        f"{_MADE}[checkpoint.keepBest.metric]",
        f"{_POLICY}test_the_metric_that_is_named_is_the_score",
    ),
    "checkpoint.keepBest.mode": (
        f"{_EFFECTS}test_keep_best_keeps_the_best_scores[max]",
        f"{_EFFECTS}test_keep_best_keeps_the_best_scores[min]",
    ),
    "checkpoint.keepEvery": (f"{_ATTEMPTS}test_retention_keeps_what_it_was_told_to",),
    "checkpoint.local.interval.steps": (f"{_MADE}[checkpoint.local]", f"{_POLICY}test_local_saves_fall_due_by_steps"),
    "checkpoint.local.interval.seconds": (
        f"{_MADE}[checkpoint.local]",
        f"{_POLICY}test_local_saves_fall_due_by_seconds",
    ),
    "checkpoint.local.medium": (
        f"{_MADE}[checkpoint.local]",
        "tests/unit/build/test_pod.py::test_the_local_tier_is_a_volume_of_the_pod",
    ),
    "checkpoint.local.sizeLimit": (f"{_MADE}[checkpoint.local]", f"{_POLICY}test_the_local_tier_keeps_to_its_size"),
    "checkpoint.weights.interval.steps": (
        f"{_MADE}[checkpoint.weights]",
        f"{_POLICY}test_weights_are_published_by_steps",
    ),
    "checkpoint.weights.interval.seconds": (
        f"{_MADE}[checkpoint.weights]",
        f"{_POLICY}test_weights_are_published_by_seconds",
    ),
    "checkpoint.weights.keepLast": (
        f"{_MADE}[checkpoint.weights]",
        f"{_POLICY}test_so_many_sets_of_weights_are_kept",
    ),
    "resume.mode": (
        f"{_EFFECTS}test_resume_disable_begins_afresh_though_there_are_checkpoints",
        f"{_ATTEMPTS}test_deletion_policy_retain_leaves_storage_alone_and_a_new_job_of_the_name_goes_on",
    ),
    "resume.path": (
        f"{_ATTEMPTS}test_resume_from_another_jobs_checkpoint_forks_it",
        f"{_ATTEMPTS}test_a_resume_path_that_does_not_exist_fails_the_job_and_says_so",
    ),
    "failurePolicy.maxRestarts": (f"{_EFFECTS}test_max_restarts_is_how_many_count",),
    "failurePolicy.windowSeconds": (f"{_UNIT}window.py::test_restarts_of_long_ago_are_forgiven",),
    "failurePolicy.maxRestartsWithoutProgress": (f"{_ATTEMPTS}test_attempts_without_a_commit_end_the_job",),
    "failurePolicy.stallTimeoutSeconds": (f"{_FAULTS}test_a_hang_is_seen_by_the_step_that_stands_still",),
    "failurePolicy.phaseTimeoutSeconds.starting": (_STALL,),
    "failurePolicy.phaseTimeoutSeconds.restoring": (_STALL,),
    "failurePolicy.phaseTimeoutSeconds.compiling": (_STALL,),
    "failurePolicy.phaseTimeoutSeconds.saving": (_STALL,),
    "failurePolicy.phaseTimeoutSeconds.evaluating": (_STALL,),
    "failurePolicy.phaseTimeoutSeconds.finished": (_STALL,),
    "failurePolicy.saveTimeoutSeconds": (
        f"{_MADE}[failurePolicy.saveTimeoutSeconds]",
        f"{_POLICY}test_saves_that_fail_for_too_long_end_the_run",
    ),
    "failurePolicy.startTimeoutSeconds": (f"{_UNIT}starting.py::test_the_limit_and_its_spread",),
    "failurePolicy.backoff.initialSeconds": (
        f"{_EFFECTS}test_the_wait_after_an_attempt_without_progress_is_what_backoff_says",
    ),
    "failurePolicy.backoff.maxSeconds": (f"{_UNIT}rules_and_limits.py::test_the_wait_doubles_up_to_its_maximum",),
    "failurePolicy.rules[].name": (f"{_RULE}[in]",),
    "failurePolicy.rules[].action": (
        f"{_RULE}[in]",
        f"{_RULE}[restart]",
        f"{_RULE}[uncounted]",
    ),
    "failurePolicy.rules[].onExitCodes.operator": (f"{_RULE}[not-in]",),
    "failurePolicy.rules[].onExitCodes.values": (f"{_RULE}[in]", f"{_RULE}[other-code]"),
    "failurePolicy.rules[].onReasons": (f"{_RULE}[reason]",),
    "failurePolicy.rules[].onPodConditions[].type": (f"{_CONDITION}[True]",),
    "failurePolicy.rules[].onPodConditions[].status": (f"{_CONDITION}[True]", f"{_CONDITION}[False]"),
    "failurePolicy.rules[].onMessages": (f"{_RULE}[message]",),
    "activeDeadlineSeconds": (f"{_EFFECTS}test_the_deadline_ends_a_job_that_is_active_for_too_long",),
    "ttlSecondsAfterFinished": (f"{_EFFECTS}test_a_finished_job_is_deleted_after_its_time_to_live",),
    "deletionPolicy": (
        f"{_ATTEMPTS}test_deletion_policy_delete_removes_all_that_was_written",
        f"{_ATTEMPTS}test_deletion_policy_retain_leaves_storage_alone_and_a_new_job_of_the_name_goes_on",
    ),
    "managedBy": (f"{_EFFECTS}test_a_job_of_another_controller_is_left_alone",),
}
"""Fields without fields of their own; what holds for an object is what holds for these."""

_CRD = "tests/operator/api/test_crd.py::"
_CHANGES = f"{_UNIT}edits.py::"

CHANGES: Final[dict[str, str]] = {
    "live": f"{_UNIT}live.py::test_an_edit_is_acted_on_at_once[{{path}}]",
    "restart": f"{_EDITS}test_a_field_that_needs_a_restart[{{path}}]",
    "next-attempt": f"{_CHANGES}test_a_field_for_the_next_attempt_leaves_the_gang_alone_and_says_so[{{path}}]",
    "first-attempt": f"{_CRD}test_resume_may_change_until_the_first_attempt_has_started",
    "immutable": f"{_CRD}test_immutable_fields_cannot_be_changed[spec.{{path}}]",
}
"""For each way to change, the test that an edit of a field does just that; `path`: the field, or what holds it."""

SPECIAL_CHANGES: Final[dict[str, str]] = {
    "suspend": f"{_ATTEMPTS}test_a_change_of_mind_while_the_gang_saves_does_not_cost_the_save",
    "elastic.maxNodes": f"{_REFUSALS}[spec.nodes: rule0]",
}
"""Fields whose edit is tried elsewhere than that of their kind."""
