"""Bad manifests on a real API server: each is refused by the field's full path, and its twin is accepted."""

from __future__ import annotations

import json
import re

import pytest

from tests.operator.api.conftest import Jobs, RefusedError
from tests.support.bad_manifests import Case, generated, ruled

_ACCEPTED: set[str] = set()
"""Twins that were tried: most cases share the full manifest."""


@pytest.mark.parametrize("case", [*generated(), *ruled()], ids=str)
def test_a_bad_field_is_refused_by_its_path_and_its_twin_is_accepted(crd_jobs: Jobs, case: Case) -> None:
    twin = json.dumps(case.twin, sort_keys=True)
    if twin not in _ACCEPTED:
        crd_jobs.create(case.twin, dry_run=True)
        _ACCEPTED.add(twin)
    with pytest.raises(RefusedError) as refused:
        crd_jobs.create(case.bad, dry_run=True)
    message = str(refused.value)
    named = rf'(?:^|[\s"\[(]){re.escape(case.field)}["\]:]'
    assert re.search(named, message), f"{case.field} is not named: {message}"
    assert re.search(case.words, message), message
