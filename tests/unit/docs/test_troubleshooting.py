"""docs/troubleshooting.md knows every reason that the operator gives in a condition or an event."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import everstep_operator
from everstep_operator.act import refusals
from everstep_operator.config.profiles import Refusal
from everstep_operator.reconcile import conditions, history, rendezvous, stall, starting
from everstep_operator.storage import errors
from tests.support.troubleshooting import PAGE

REASONS = {
    *(reason for _, _, reason in errors._KINDS),
    *(reason for _, reason in refusals._WORDS),
    *(refusal.value for refusal in Refusal),
    *("PodInvalid", "PodForbidden", "PodRefused", "PodNameTaken", "ApiServerUnavailable", "ResumePathInvalid"),
    *("PodLabelsTaken", "ServiceNameTaken", "ServiceWithoutAddress", "ServiceAltered"),
    *("NoProgress", "RestartLimit", "NotRunnable", "FailJobRule", history.DEADLINE),
}
REASONS |= {*conditions.PATIENT, *history.SAVED, stall.REASON, starting.REASON, rendezvous.REASON}
ALL_IS_WELL = {"AllPodsSucceeded", "CatalogReady", "CheckpointCommitted", "GangCurrent", "GangRunning", "Resumed"}
ALL_IS_WELL |= {"SpecRead", "SpecSuspend"}
"""Of conditions that are as they should be."""
SAYING = {"put", "clear", "clear_to_true", "drop", "_describe", "Event", "Problem"}


def said() -> set[str]:
    """The reasons that stand as words in the code: arguments of the calls that make conditions, events and problems."""
    found = set()
    for path in Path(everstep_operator.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in SAYING:
                words = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
                found |= {word for word in words if re.fullmatch(r"([A-Z][a-z]+)+", word)}
    return found - {"Normal", "Warning", "False", "True"}


@pytest.mark.parametrize("reason", sorted((REASONS | said()) - ALL_IS_WELL))
def test_every_reason_is_explained(reason: str) -> None:
    assert f"`{reason}`" in PAGE.read_text(encoding="utf-8")
