from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from everstep.data import Batches, ReplayError, StreamBatches, verify
from everstep.data.verify import first_difference
from everstep.errors import InvalidOperationError

from .test_stream import Shards, drawn


class Counter:
    """Numbers from a generator; `flaw` is what is wrong with its state."""

    def __init__(self, flaw: str = "", end: int = 100) -> None:
        self.flaw = flaw
        self.end = end
        self.at = 0
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Counter:
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        if self.at == self.end:
            raise StopIteration
        self.at += 1
        return {"at": torch.full((2, 3), self.at), "noise": torch.rand(2, generator=self.generator)}

    def state_dict(self) -> dict[str, Any]:
        if self.flaw == "disturbs":
            torch.rand(1, generator=self.generator)
        return {"at": self.at - (self.flaw == "behind" and self.at > 4), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]
        if self.flaw != "forgets":
            self.generator.set_state(state["generator"])
        if self.flaw == "longer":
            self.end += 1


def test_data_that_resumes_passes() -> None:
    verify(Counter, steps=10)
    verify(Counter, steps=10, at=range(10))
    verify(lambda: Counter(end=6), steps=10, at=5)
    verify(lambda: Batches(range(10), 4, seed=1), steps=9, at=range(9))


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_workers_that_read_ahead_pass(workers: int) -> None:
    verify(lambda: StreamBatches(Shards((5, 6)), 3, decode=drawn, workers=workers), steps=8, at=[1, 6])


@pytest.mark.parametrize(
    ("flaw", "at", "batch", "place", "expected", "found"),
    [
        ("behind", 5, 5, "['at'][0, 0]", "6 in int64[2, 3] (6, 6, 6, 6, …)", "5 in"),
        ("forgets", 1, 1, "['noise'][0]", "0.088", "0.496"),
        ("disturbs", 0, 0, "['noise'][0]", "0.496", "0.768"),
    ],
)
def test_the_first_difference_is_named(flaw: str, at: int, batch: int, place: str, expected: str, found: str) -> None:
    with pytest.raises(ReplayError, match=f"restored after {at} batches, batch {batch}, ") as caught:
        verify(lambda: Counter(flaw), steps=10)
    difference = pickle.loads(pickle.dumps(caught.value)).difference
    assert (difference.at, difference.batch, difference.place) == (at, batch, place)
    assert difference.expected.startswith(expected)
    assert difference.found.startswith(found)


def test_data_that_ends_elsewhere_differs() -> None:
    with pytest.raises(ReplayError, match=r"batch 6: expected 'the end of the data', found \{'at'"):
        verify(lambda: Counter("longer", end=6), steps=8, at=3)


def test_what_cannot_be_replayed() -> None:
    with pytest.raises(InvalidOperationError, match="steps=0"):
        verify(Counter, steps=0)
    with pytest.raises(InvalidOperationError, match="at=10: take states after 0 to 9"):
        verify(Counter, steps=10, at=10)
    with pytest.raises(InvalidOperationError, match="has neither state_dict"):
        verify(lambda: iter(range(10)), steps=3)


@pytest.mark.parametrize(
    ("first", "second", "place"),
    [
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), None),
        (torch.tensor([0.0]), torch.tensor([-0.0]), "[0]"),
        (torch.tensor([1]), torch.tensor([1.0]), ""),
        (torch.zeros(2, 0), torch.zeros(2, 0), None),
        (torch.tensor(1), torch.tensor(2), ""),
        (torch.ones(2, dtype=torch.bfloat16), torch.tensor([1, 2], dtype=torch.bfloat16), "[1]"),
        (np.array([1, 2]), np.array([1, 3]), "[1]"),
        (np.array(["a"]), np.array(["a"]), None),
        ([1, (2, "x")], [1, (2, "y")], "[1][1]"),
        ({"a": 1}, {"a": 1, "b": 2}, ""),
        ([1], [1, 2], ""),
        (float("nan"), float("nan"), None),
        (1, True, ""),
    ],
)
def test_what_counts_as_a_difference(first: Any, second: Any, place: str | None) -> None:
    found = first_difference(first, second)
    assert (found and found[0]) == place
