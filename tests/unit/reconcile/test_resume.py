"""What `resume.path` may name."""

from __future__ import annotations

import pytest

from everstep.catalog import Location, Resume, Source
from everstep.errors import CheckpointNotFoundError
from everstep_operator.reconcile.resume import choose
from tests.support.observations import claimed, committed

OWN, OTHER = "s3://bucket/prefix/default/job", "s3://bucket/prefix/default/parent"
CATALOG = committed(10, 20)
TEN, TWENTY = (entry.location for entry in CATALOG.checkpoints)


def source(step: int, location: str) -> Resume:
    return Resume(source=Source(root=OTHER, location=location, step=step, digest="d" * 64))


@pytest.mark.parametrize(
    ("root", "location", "expected"),
    [
        (OTHER, None, source(20, TWENTY)),
        (OTHER + "/", None, source(20, TWENTY)),
        (OTHER, TEN, source(10, TEN)),
        (OWN, TEN, Resume(location=TEN)),
        (OWN + "/", None, Resume(location=TWENTY)),
    ],
)
def test_choice(root: str, location: str | None, expected: Resume) -> None:
    assert choose(OWN, root, Location.parse(location) if location else None, CATALOG) == expected


def test_what_is_not_there_is_said_with_what_is() -> None:
    with pytest.raises(CheckpointNotFoundError, match="not committed; committed steps there: 10, 20"):
        choose(OWN, OTHER, Location(30, 2, "0" * 12), CATALOG)
    with pytest.raises(CheckpointNotFoundError, match="nothing is committed under"):
        choose(OWN, OTHER, None, claimed())
    with pytest.raises(CheckpointNotFoundError, match="holds no everstep catalog"):
        choose(OWN, OTHER, None, None)


def test_a_damaged_checkpoint_is_no_start() -> None:
    damaged = tuple(entry.model_copy(update={"state": "quarantined"}) for entry in CATALOG.checkpoints)
    with pytest.raises(CheckpointNotFoundError, match="set aside as damaged; committed steps there: none"):
        choose(OWN, OTHER, Location.parse(TEN), CATALOG.model_copy(update={"checkpoints": damaged}))
