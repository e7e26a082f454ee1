"""Who keeps a copy of whose part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everstep import Checkpointer
from everstep.checkpoint.local.replicas import targets
from everstep.errors import InvalidOperationError

from .conftest import Job


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12))
def test_every_part_has_a_copy_on_another_node_and_no_rank_keeps_too_many(homes: list[str]) -> None:
    found = targets(homes)
    if len(set(homes)) == 1:
        assert found == {}
        return
    assert set(found) == set(range(len(homes)))
    assert all(homes[source] != homes[target] for source, target in found.items())
    largest, smallest = max(map(homes.count, homes)), min(map(homes.count, homes))
    assert max(list(found.values()).count(rank) for rank in range(len(homes))) <= -(-largest // smallest)


def test_on_a_single_node_it_is_told_once_that_there_are_no_copies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = Job()
    options: dict[str, Any] = {"local": tmp_path / "node", "local_steps": 1, "local_replicas": 1}
    with mine.checkpointer(tmp_path / "root", interval_steps=100, **options) as checkpointer:
        for _ in checkpointer.steps(5):
            mine.step()
        assert checkpointer._local.failed == 0
    assert caplog.text.count("is not on other nodes: all ranks are on one node") == 1


@pytest.mark.parametrize("options", [{"local_replicas": 1}, {"local_replicas": 2, "local_steps": 1}])
def test_copies_of_nothing_and_of_more_than_one_kind_are_refused(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(InvalidOperationError, match="local_replicas"):
        Checkpointer(root=str(tmp_path), local=tmp_path / "node", **options)
