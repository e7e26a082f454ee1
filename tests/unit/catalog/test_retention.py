from __future__ import annotations

from datetime import timedelta

import pytest

from everstep.catalog.documents import Catalog, Claim, Entry, Hold
from everstep.catalog.retention import Best, Retention, expendable, kept
from tests.unit.catalog.saves import NOW


def location(step: int) -> str:
    return f"checkpoints/step_{step:012}-000001-0123456789ab"


def catalog(steps: range, scores: dict[int, float] | None = None, **changes: object) -> Catalog:
    entries = tuple(
        Entry(
            seq=number,
            step=step,
            epoch=1,
            attempt=1,
            location=location(step),
            digest="d",
            bytes=1,
            committed=NOW,
            score=(scores or {}).get(step),
        )
        for number, step in enumerate(steps, start=1)
    )
    return Catalog(checkpoints=entries).model_copy(update=changes)


def stays(catalog: Catalog, policy: Retention) -> list[int]:
    gone = {entry.step for entry in expendable(catalog, policy, NOW)}
    return [entry.step for entry in catalog.live() if entry.step not in gone]


STEPS = range(10, 110, 10)
SCORES = {10: 5.0, 20: 1.0, 30: 9.0, 40: 1.0, 50: 3.0}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Retention(), list(STEPS)),
        (Retention(last=0, every=0, best=Best(count=0)), list(STEPS)),
        (Retention(last=1), [90, 100]),
        (Retention(last=3), [80, 90, 100]),
        (Retention(every=40), [40, 80, 90, 100]),
        (Retention(best=Best(count=1)), [40, 90, 100]),
        (Retention(best=Best(count=2)), [20, 40, 90, 100]),
        (Retention(best=Best(count=1, mode="max")), [30, 90, 100]),
        (Retention(last=3, every=50, best=Best(count=1, mode="max")), [30, 50, 80, 90, 100]),
    ],
)
def test_the_union_of_policies_stays(policy: Retention, expected: list[int]) -> None:
    assert stays(catalog(STEPS, SCORES), policy) == expected


def test_pins_and_holds_stay_until_they_end() -> None:
    entries = catalog(STEPS).checkpoints
    pinned = tuple(e.model_copy(update={"pinned": e.step == 20}) for e in entries)
    holds = (
        Hold(location=location(30), by="fork", until=NOW + timedelta(seconds=1)),
        Hold(location=location(40), by="fork", until=NOW),
    )
    assert stays(Catalog(checkpoints=pinned, holds=holds), Retention(last=1)) == [20, 30, 90, 100]


@pytest.mark.parametrize(("own", "protected"), [(0, True), (1, True), (2, False)])
def test_what_was_resumed_from_stays_until_two_commits_of_its_own(own: int, protected: bool) -> None:
    steps = range(10, 10 * (6 + own), 10)
    base = catalog(steps)
    entries = tuple(e.model_copy(update={"epoch": 2 if e.step > 50 else 1}) for e in base.checkpoints)
    claim = Claim(id="c", attempt=2, epoch=2, resumed=location(20), at=NOW)
    kept_steps = stays(Catalog(checkpoints=entries, claim=claim), Retention(last=1))
    assert (20 in kept_steps) is protected


def test_entries_that_are_not_live_are_nobodys_business() -> None:
    entries = tuple(
        e.model_copy(update={"state": "quarantined" if e.step == 100 else "live"}) for e in catalog(STEPS).checkpoints
    )
    full = Catalog(checkpoints=entries)
    assert stays(full, Retention(last=1)) == [80, 90]
    assert location(100) not in {entry.location for entry in expendable(full, Retention(last=1), NOW)}


def test_each_entry_says_why_it_stays() -> None:
    reasons = kept(catalog(STEPS, SCORES), Retention(last=2, best=Best(count=1), every=50), NOW)
    assert reasons[location(100)] == ["latest", "last 2", "every 50"]
    assert reasons[location(40)] == ["best 1"]
