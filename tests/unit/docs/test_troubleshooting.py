"""docs/troubleshooting.md knows every reason that the operator gives for a job that waits or has failed."""

from __future__ import annotations

import pytest

from everstep_operator.act import refusals
from everstep_operator.config.profiles import Refusal
from everstep_operator.reconcile import history
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


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_every_reason_is_explained(reason: str) -> None:
    assert f"`{reason}`" in PAGE.read_text(encoding="utf-8")
