"""What a failure leads to: another attempt, counted or not, or the end of the job."""

from __future__ import annotations

from dataclasses import dataclass

from everstep.exits import FENCED, MISFIT
from everstep_operator.api.failure import FailurePolicy
from everstep_operator.reconcile import disruption, rules
from everstep_operator.reconcile.classify import Cause


@dataclass(frozen=True, slots=True)
class Verdict:
    counted: bool = True
    rule: str | None = None
    """The rule of the failure policy that decided, if one did."""
    end: str | None = None
    """The reason why the job fails; None: another attempt."""
    message: str = ""


def judge(
    policy: FailurePolicy, used: int, cause: Cause, without_progress: int, superseded: bool, asked: bool = False
) -> Verdict:
    """`used`: restarts that are held against maxRestarts so far; `without_progress`: attempts in a row that committed
    nothing, this one included and disruptions left out.

    `superseded`: the catalog is gone or names a newer attempt, so that being fenced is nobody's fault. `asked`: see
    `disruption.is_one`.
    """
    rule = rules.match(policy, cause)
    if rule is not None and rule.action == "FailJob":
        return Verdict(False, rule.name, "FailJobRule", f"rule {rule.name} ends the job: {cause.message}")
    if rule is None and cause.code == MISFIT:
        return Verdict(False, None, "NotRunnable", f"another attempt would fail the same way: {cause.message}")
    name = rule.name if rule is not None else None
    innocent = rule is None and (disruption.is_one(cause, asked) or (superseded and cause.code == FENCED))
    if innocent or (rule is not None and rule.action == "RestartUncounted"):
        return Verdict(False, name)
    if used >= policy.max_restarts:
        within = f" within {policy.window_seconds} s" if policy.window_seconds is not None else ""
        limit = f"maxRestarts {policy.max_restarts}{within}"
        return Verdict(True, name, "RestartLimit", f"{limit} is used up; the last failure: {cause.message}")
    if without_progress >= policy.max_restarts_without_progress:
        count = f"{without_progress} attempts in a row" if without_progress > 1 else "the attempt"
        return Verdict(True, name, "NoProgress", f"{count} committed nothing; the last failure: {cause.message}")
    return Verdict(True, name)
