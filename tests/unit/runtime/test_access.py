from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from everstep.catalog import Owner, S3Access
from everstep_operator.storage.access import JobStorage

THEN = datetime(2031, 5, 6, tzinfo=UTC)


def test_the_register_is_written_by_the_clock_of_the_decisions(tmp_path: Path) -> None:
    storage = JobStorage(str(tmp_path), cast(S3Access, None), cast(Any, None), 1.0, now=lambda: THEN)
    storage.catalog.fence(Owner(cluster="c", namespace="ns", name="job", uid="u"))
    storage.catalog.claim(attempt=1, uid="u")
    claim = storage.catalog.require().claim
    assert claim is not None
    assert claim.at == THEN
