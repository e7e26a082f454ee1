from __future__ import annotations

from pathlib import Path

import pytest

from dev import space
from dev.instance import InstanceError
from dev.space import GB, SPARE, Cost

PLACE = Path("/caches")


def test_names_what_is_still_to_be_paid_and_the_way_out() -> None:
    costs = [Cost("the programs", 8 * GB, False), Cost("the images", 13 * GB, False), Cost("the rest", 5 * GB, True)]
    with pytest.raises(InstanceError) as refused:
        space.ensure(costs, 20 * GB, PLACE)
    message = str(refused.value)
    assert "/caches has 20.0 GB free, and 24 GB are needed: the programs (8 GB), the images (13 GB)." in message
    assert "python -m dev prune" in message
    assert "EVERSTEP_CACHE" in message


@pytest.mark.parametrize(("paid", "free"), [(False, 8 * GB + SPARE), (True, SPARE)])
def test_enough_is_enough(paid: bool, free: int) -> None:
    space.ensure([Cost("the programs", 8 * GB, paid)], free, PLACE)
    with pytest.raises(InstanceError):
        space.ensure([Cost("the programs", 8 * GB, paid)], free - 1, PLACE)


def test_an_empty_cache_has_paid_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTEP_CACHE", str(tmp_path / "empty"))
    assert not any(cost.paid for cost in space.costs())
    assert space.free()[1] == tmp_path / "empty"
