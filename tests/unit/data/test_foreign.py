from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from everstep.data import PerRank, verify
from everstep.errors import InvalidOperationError

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


class Numbers(Dataset[int]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        return index


class Counting:
    """Begins anew at each iter(); the state is the iterator's."""

    def __init__(self, end: int = 3) -> None:
        self.end = end
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[int]:
        return CountingIterator(self.end)


class CountingIterator:
    def __init__(self, end: int) -> None:
        self.at, self.end = 0, end

    def __iter__(self) -> CountingIterator:
        return self

    def __next__(self) -> int:
        if self.at == self.end:
            raise StopIteration
        self.at += 1
        return self.at

    def get_state(self) -> dict[str, int]:
        return {"at": self.at}

    def set_state(self, state: dict[str, int]) -> None:
        self.at = state["at"]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_torchdatas_loader_resumes_in_every_place_of_an_epoch(workers: int) -> None:
    def make() -> PerRank:
        return PerRank(StatefulDataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=workers), seed=1)

    verify(make, steps=8, at=range(8) if workers == 0 else [2, 3])


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_beginning_an_epoch_draws_nothing_from_the_model(workers: int) -> None:
    loader = StatefulDataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=workers)
    before = torch.get_rng_state()
    data = PerRank(loader)
    first, second = ([number for _ in range(3) for number in next(data).tolist()] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert torch.equal(torch.get_rng_state(), before)


def test_a_samplers_epoch_follows() -> None:
    def make() -> PerRank:
        sampler: DistributedSampler[int] = DistributedSampler(Numbers(), num_replicas=2, rank=1, shuffle=True)
        return PerRank(StatefulDataLoader(Numbers(), batch_size=5, sampler=sampler), rank=1, world_size=2)

    data = make()
    assert next(data).tolist() != next(data).tolist()
    verify(make, steps=6, at=range(6))


def test_an_iterator_with_a_state_of_its_own() -> None:
    verify(lambda: PerRank(Counting()), steps=8, at=range(8))
    counting = Counting()
    data = PerRank(counting)
    assert [next(data) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]
    assert (data.epoch, counting.epochs) == (2, [0, 1, 2])


def test_a_state_fits_its_own_rank_of_its_own_gang_only() -> None:
    data = PerRank(Counting(), rank=1, world_size=2)
    next(data)
    state = data.get_state()
    for rank, world_size in ((0, 1), (0, 2), (1, 3)):
        with pytest.raises(
            InvalidOperationError, match=r"of rank 1 of 2, .*resumes on 2 ranks only; use everstep\.data"
        ):
            PerRank(Counting(), rank=rank, world_size=world_size).set_state(state)
    with pytest.raises(InvalidOperationError, match="none of PerRank"):
        data.set_state({"position": 3})
    assert next(data) == 2


def test_what_cannot_be_kept_is_refused_at_once() -> None:
    wrong: list[tuple[Any, str]] = [([1, 2], "list_iterator has neither"), (3, "a int cannot be iterated")]
    for loader, message in wrong:
        with pytest.raises(InvalidOperationError, match=message):
            PerRank(loader)
    with pytest.raises(InvalidOperationError, match="epoch 1 has no batch on rank 0"):
        next(PerRank(Counting(0)))
    once = PerRank(CountingIterator(1))
    next(once)
    with pytest.raises(InvalidOperationError, match="has ended, and cannot begin again"):
        next(once)
