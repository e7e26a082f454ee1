"""Which of the failure policy's rules decides about a cause."""

from __future__ import annotations

from everstep_operator.api.failure import FailurePolicy, FailureRule
from everstep_operator.reconcile.classify import Cause


def match(policy: FailurePolicy, cause: Cause) -> FailureRule | None:
    """The first that matches."""
    return next((rule for rule in policy.rules if matches(rule, cause)), None)


def matches(rule: FailureRule, cause: Cause) -> bool:
    if rule.on_exit_codes is not None:
        code = cause.code
        if code is None or code == 0:
            return False
        shown = 128 - code if code < 0 else code
        return (shown in rule.on_exit_codes.values) == (rule.on_exit_codes.operator == "In")
    if rule.on_reasons is not None:
        return not cause.reasons.isdisjoint(rule.on_reasons)
    if rule.on_messages is not None:
        return any(contains(cause.message, pattern) for pattern in rule.on_messages)
    return any((item.type, item.status) in cause.conditions for item in rule.on_pod_conditions or [])


def contains(message: str, pattern: str) -> bool:
    """Whether the parts of `pattern` between its stars stand in `message` in their order. No regular expression: one
    that a tenant writes could keep the operator busy for years."""
    text, start = message.lower(), 0
    for part in pattern.lower().split("*"):
        found = text.find(part, start)
        if found < 0:
            return False
        start = found + len(part)
    return True
