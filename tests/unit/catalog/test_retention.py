from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everstep.catalog.documents import Catalog, Claim, Entry, Hold
from everstep.catalog.job import JobCatalog
from everstep.catalog.retention import ALWAYS_NEWEST, Best, Retention, expendable, kept, safeguarded, span, unscored
from everstep.catalog.store import open_store
from tests.unit.catalog.saves import NOW, save


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


def test_scores_of_another_metric_do_not_compete() -> None:
    entries = catalog(STEPS, SCORES).checkpoints
    named = tuple(
        entry.model_copy(update={"score_of": {10: "loss", 20: "loss", 30: "accuracy"}.get(entry.step)})
        for entry in entries
    )
    best_of = {
        metric: [step for step in stays(Catalog(checkpoints=named), policy) if step < 90]
        for metric in (None, "loss", "accuracy")
        for policy in [Retention(best=Best(count=1, mode="max", metric=metric))]
    }
    assert best_of == {None: [30], "loss": [10], "accuracy": [30]}
    lowest = Retention(best=Best(count=1, metric="accuracy"))
    assert stays(Catalog(checkpoints=named), lowest) == [40, 90, 100], "a score of no name competes with all"


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


def test_by_age_what_is_younger_stays() -> None:
    entries = tuple(
        e.model_copy(update={"committed": NOW - timedelta(seconds=110 - e.step)}) for e in catalog(STEPS).checkpoints
    )
    assert stays(Catalog(checkpoints=entries), Retention(within=40)) == [70, 80, 90, 100]
    assert stays(Catalog(checkpoints=entries), Retention(within=1)) == [90, 100], "the newest two, however old"
    assert stays(Catalog(checkpoints=entries), Retention(within=1, every=50)) == [50, 90, 100]


@pytest.mark.parametrize(("seconds", "text"), [(604800, "7d"), (5400, "90m"), (7200, "2h"), (0.5, "0.5s")])
def test_an_age_is_written_in_one_unit(seconds: float, text: str) -> None:
    assert span(seconds) == text


@st.composite
def catalogs(draw: st.DrawFn) -> Catalog:
    """Entries of any state, score, age and pin; holds that run and that ran out; a claim that resumed one of them."""
    steps = sorted(draw(st.sets(st.integers(1, 60), max_size=12)))
    entries = tuple(
        entry.model_copy(
            update={
                "state": draw(st.sampled_from(["live", "live", "live", "quarantined", "abandoned"])),
                "pinned": draw(st.booleans()) and draw(st.booleans()),
                "score": draw(st.none() | st.sampled_from([0.0, 1.0, 2.0, 2.0, 3.0])),
                "committed": NOW - timedelta(seconds=draw(st.integers(0, 100))),
                "epoch": draw(st.integers(1, 2)),
            }
        )
        for entry in (catalog(range(step, step + 1)).checkpoints[0] for step in steps)
    )
    entries = tuple(entry.model_copy(update={"seq": seq}) for seq, entry in enumerate(entries, start=1))
    names = [entry.location for entry in entries]
    holds = tuple(
        Hold(location=name, by="reader", until=NOW + timedelta(seconds=draw(st.integers(-5, 5))))
        for name in (draw(st.lists(st.sampled_from(names), unique=True)) if names else [])
    )
    resumed = draw(st.none() | st.sampled_from(names)) if names else None
    claim = draw(st.sampled_from([None, Claim(id="c", attempt=2, epoch=2, resumed=resumed, at=NOW)]))
    return Catalog(checkpoints=entries, holds=holds, claim=claim)


PARTS = st.fixed_dictionaries(
    {},
    optional={
        "last": st.integers(0, 6),
        "every": st.integers(0, 20),
        "within": st.floats(0, 120),
        "best": st.builds(Best, count=st.integers(0, 4), mode=st.sampled_from(["min", "max"])),
    },
)


@given(catalogs(), PARTS)
def test_a_policy_keeps_the_union_of_its_parts_and_of_what_safety_demands(
    catalog: Catalog, parts: dict[str, object]
) -> None:
    policy = Retention.model_validate(parts)
    live = {entry.location for entry in catalog.live()}
    keeping = [Retention.model_validate({name: part}) for name, part in parts.items()]
    keeping = [each for each in keeping if not each.keeps_everything]
    union = live if policy.keeps_everything else {name for each in keeping for name in kept(catalog, each, NOW)}
    stay = set(kept(catalog, policy, NOW))
    assert stay == union & live
    assert {entry.location for entry in catalog.live()[-ALWAYS_NEWEST:]} <= stay
    assert set(safeguarded(catalog, NOW)) & live <= stay
    running = {hold.location for hold in catalog.holds if hold.until > NOW}
    pinned = {entry.location for entry in catalog.checkpoints if entry.pinned}
    leaving = {entry.location for entry in expendable(catalog, policy, NOW)}
    assert leaving == live - stay
    assert not leaving & (running | pinned)


@given(catalogs(), PARTS)
def test_what_a_part_keeps_is_what_its_definition_says(catalog: Catalog, parts: dict[str, object]) -> None:
    """Against a second definition, written without the first."""
    policy = Retention.model_validate(parts)
    safe = safeguarded(catalog, NOW)
    for entry in catalog.live():
        newer = [other for other in catalog.live() if other.seq > entry.seq]
        wanted = policy.keeps_everything or entry.location in safe
        wanted |= bool(policy.last) and len(newer) < (policy.last or 0)
        wanted |= bool(policy.every) and entry.step % (policy.every or 1) == 0
        wanted |= bool(policy.within) and (NOW - entry.committed).total_seconds() <= (policy.within or 0)
        wanted |= _among_best(entry, catalog.live(), policy.best)
        assert (entry.location in kept(catalog, policy, NOW)) == wanted


def _among_best(entry: Entry, live: list[Entry], policy: Best | None) -> bool:
    if policy is None or entry.score is None:
        return False

    def beats(other: Entry) -> bool:
        if other.score is None or entry.score is None:
            return False
        better = other.score < entry.score if policy.mode == "min" else other.score > entry.score
        return better or (other.score == entry.score and other.seq > entry.seq)

    return sum(beats(other) for other in live) < policy.count


def test_the_register_remembers_the_policy_and_is_not_written_again_for_it(tmp_path: Path) -> None:
    now: list[datetime] = [NOW]
    job = JobCatalog(open_store(str(tmp_path)), clock=lambda: now[0])
    claimed = job.claim()
    for step in (1, 2, 3, 4):
        save(claimed, step)
    policy = Retention(within=3600)
    assert [entry.step for entry in job.retire(policy).live()] == [1, 2, 3, 4]
    generation = job.require().generation
    job.retire(policy)
    assert (job.require().generation, job.require().retention) == (generation, policy)
    now[0] += timedelta(hours=2)
    assert [entry.step for entry in job.retire(policy).live()] == [3, 4]


@pytest.mark.parametrize(
    ("policy", "stay"),
    [
        (Retention(best=Best(count=2)), [1, 2, 3, 4, 5]),
        (Retention(best=Best(count=2), last=3), [3, 4, 5]),
        (Retention(best=Best(count=2, metric="loss"), every=2), [2, 4, 5]),
    ],
)
def test_where_nothing_has_a_score_the_best_alone_is_no_policy(policy: Retention, stay: list[int]) -> None:
    """Nobody knows which are the worse: to keep too much can be mended."""
    found = catalog(range(1, 6))
    assert ([1, 2, 3, 4, 5] if unscored(found, policy) else stays(found, policy)) == stay
    assert not unscored(catalog(range(1, 6), {3: 0.5}), policy)
