"""What a failure leads to: another attempt, counted or not, or the end of the job."""

from __future__ import annotations

from dataclasses import dataclass

from everstep.exits import FENCED, MISFIT
from everstep_operator.api.failure import FailurePolicy
from everstep_operator.api.status import Restarts
from everstep_operator.reconcile import rules
from everstep_operator.reconcile.classify import Cause


@dataclass(frozen=True, slots=True)
class Verdict:
    counted: bool = True
    rule: str | None = None
    """The rule of the failure policy that decided, if one did."""
    end: str | None = None
    """The reason why the job fails; None: another attempt."""
    message: str = ""


def judge(policy: FailurePolicy, restarts: Restarts, cause: Cause, without_progress: int, superseded: bool) -> Verdict:
    """`restarts` as they stood before; `without_progress`: attempts in a row that committed nothing, this one included.

    `superseded`: the catalog is gone or names a newer attempt, so that being fenced is nobody's fault.
    """
    rule = rules.match(policy, cause)
    if rule is not None and rule.action == "FailJob":
        return Verdict(False, rule.name, "FailJobRule", f"rule {rule.name} ends the job: {cause.message}")
    if rule is None and cause.code == MISFIT:
        return Verdict(False, None, "NotRunnable", f"another attempt would fail the same way: {cause.message}")
    name = rule.name if rule is not None else None
    fenced = rule is None and superseded and cause.code == FENCED
    if fenced or (rule is not None and rule.action == "RestartUncounted"):
        return Verdict(False, name)
    if restarts.counted >= policy.max_restarts:
        limit = f"maxRestarts {policy.max_restarts}"
        return Verdict(True, name, "RestartLimit", f"{limit} is used up; the last failure: {cause.message}")
    if without_progress >= policy.max_restarts_without_progress:
        count = f"{without_progress} attempts in a row" if without_progress > 1 else "the attempt"
        return Verdict(True, name, "NoProgress", f"{count} committed nothing; the last failure: {cause.message}")
    return Verdict(True, name)
