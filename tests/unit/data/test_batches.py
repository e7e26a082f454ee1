from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everstep.data import Batches
from everstep.errors import InvalidOperationError


class Drawing:
    """Each sample draws from all three generators, as an augmentation does."""

    def __init__(self, samples: int = 10) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, random.random(), np.random.random(), float(torch.rand(()))], dtype=torch.float64)


def numbers(batch: Any) -> list[int]:
    return [int(each) for each in batch]


def step(gang: list[Batches]) -> list[int]:
    return [number for member in gang for number in numbers(next(member))]


def gang_of(ranks: int, samples: int, batch: int, state: dict[str, Any] | None = None, **more: Any) -> list[Batches]:
    made = [Batches(range(samples), batch, seed=3, rank=rank, world_size=ranks, **more) for rank in range(ranks)]
    for member in made:
        if state is not None:
            member.set_state(state)
    return made


LEGS = st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 5)), max_size=5)


@settings(deadline=None, max_examples=50)
@given(samples=st.integers(1, 40), legs=LEGS)
def test_any_split_over_ranks_and_restarts_is_one_order(samples: int, legs: list[tuple[int, int]]) -> None:
    state = None
    seen: list[int] = []
    for ranks, steps in legs:
        members = gang_of(ranks, samples, 12, state)
        for _ in range(steps):
            seen += step(members)
        states = [member.get_state() for member in members]
        assert all(each == states[0] for each in states)
        state = states[0]
        assert (members[0].position, members[0].epoch) == (len(seen), len(seen) // samples)
    assert seen == step(gang_of(1, samples, max(1, len(seen))))[: len(seen)]
    whole = len(seen) // samples * samples
    for begin in range(0, whole, samples):
        assert sorted(seen[begin : begin + samples]) == list(range(samples))


@settings(deadline=None, max_examples=30)
@given(samples=st.integers(1, 30), cut=st.integers(0, 10), before=st.integers(1, 9), after=st.integers(1, 9))
def test_another_global_batch_goes_on_at_the_same_sample(samples: int, cut: int, before: int, after: int) -> None:
    first = gang_of(1, samples, before)
    seen = [number for _ in range(cut) for number in step(first)]
    second = gang_of(1, samples, after, first[0].get_state())
    seen += [number for _ in range(5) for number in step(second)]
    assert seen == step(gang_of(1, samples, len(seen)))


def test_epochs_differ_and_seeds_differ() -> None:
    data = Batches(range(50), 50, seed=1)
    first, second = numbers(next(data)), numbers(next(data))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != numbers(next(Batches(range(50), 50, seed=2)))
    assert numbers(next(Batches(range(50), 50, shuffle=False))) == list(range(50))


def test_the_position_is_that_of_what_was_consumed_whatever_workers_have_read_ahead() -> None:
    alone = Batches(Drawing(), 4, seed=3)
    wanted = [next(alone) for _ in range(12)]
    ahead = Batches(Drawing(), 4, seed=3, workers=2, prefetch=3)
    kept = []
    for batch in wanted[:5]:
        assert torch.equal(next(ahead), batch)
        kept.append(ahead.get_state())
    assert [state["cursor"]["position"] for state in kept] == [4, 8, 12, 16, 20]
    for workers, state, done in ((3, kept[4], 5), (0, kept[2], 3), (1, kept[0], 1)):
        ahead.close()
        ahead = Batches(Drawing(), 4, seed=3, workers=workers)
        ahead.set_state(state)
        for batch in wanted[done : done + 4]:
            assert torch.equal(next(ahead), batch)
    ahead.close()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_what_samples_draw_is_theirs_and_not_the_models(workers: int) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    wanted = torch.rand(3), np.random.random(), random.random()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    data = Batches(Drawing(), 4, seed=3, workers=workers)
    batches = torch.cat([next(data) for _ in range(5)])
    data.close()
    assert torch.equal(torch.rand(3), wanted[0])
    assert (np.random.random(), random.random()) == wanted[1:]
    for column in (1, 2, 3):
        assert len(set(batches[:, column].tolist())) == 20
    halves = [Batches(Drawing(), 4, seed=3, rank=rank, world_size=2) for rank in range(2)]
    assert torch.equal(torch.cat([next(half) for _ in range(5) for half in halves]), batches)


def test_draws_may_be_left_to_the_rank() -> None:
    torch.manual_seed(5)
    first = next(Batches(Drawing(1), 4, seeded=False))
    assert len(set(first[:, 3].tolist())) == 4
    assert not torch.equal(first, next(Batches(Drawing(1), 4, seeded=False)))


def test_rows_that_can_be_read_together_are() -> None:
    class Rows(list[int]):
        asked: ClassVar[Counter[tuple[int, ...]]] = Counter()

        def __getitems__(self, indices: list[int]) -> list[int]:
            self.asked[tuple(indices)] += 1
            return [self[index] for index in indices]

    rows = Rows(range(6))
    together = Batches(rows, 3, seed=1, seeded=False)
    apart = Batches(list(range(6)), 3, seed=1)
    assert [numbers(next(together)) for _ in range(4)] == [numbers(next(apart)) for _ in range(4)]
    assert sum(rows.asked.values()) == 4


def test_a_sample_that_fails_is_asked_for_again() -> None:
    class Flaky(Drawing):
        fails = True

        def __getitem__(self, index: int) -> torch.Tensor:
            if index == 7 and self.fails:
                raise OSError("the disk has gone")
            return torch.tensor(index)

    dataset = Flaky()
    data = Batches(dataset, 1, shuffle=False)
    assert [numbers(next(data)) for _ in range(7)] == [[number] for number in range(7)]
    for _ in range(2):
        with pytest.raises(OSError, match="the disk has gone"):
            next(data)
    dataset.fails = False
    assert numbers(next(data)) == [7]
    with pytest.raises(OSError, match="the disk has gone"):
        next(Batches(Flaky(), 10, workers=1))


def test_other_data_is_refused_or_begun_anew(said: pytest.LogCaptureFixture) -> None:
    data = Batches(range(10), 4, seed=1)
    for _ in range(4):
        next(data)
    state = data.get_state()
    with pytest.raises(InvalidOperationError, match=r"samples was 10 and is 12.*on_change='warn'"):
        Batches(range(12), 4, seed=1).set_state(state)
    with pytest.raises(InvalidOperationError, match="seed was 1 and is 2"):
        Batches(range(10), 4, seed=2).set_state(state)
    with pytest.raises(InvalidOperationError, match="fingerprint was None and is 'b'"):
        Batches(range(10), 4, seed=1, fingerprint="b").set_state(state)
    with pytest.raises(InvalidOperationError, match="state is none of Batches"):
        data.set_state({"position": 7})
    grown = Batches(range(12), 4, seed=1, on_change="warn")
    grown.set_state(state)
    assert "samples was 10 and is 12; epoch 2 begins" in said.text
    assert (grown.position, grown.epoch) == (16, 2)
    assert sorted(number for _ in range(3) for number in numbers(next(grown))) == list(range(12))


def test_a_dataset_says_what_it_is() -> None:
    class Named(list[int]):
        def fingerprint(self) -> str:
            return "mine"

    class HuggingFace(list[int]):
        _fingerprint = "theirs"

    assert Batches(Named([1]), 1).get_state()["order"]["fingerprint"] == "mine"
    assert Batches(HuggingFace([1]), 1).get_state()["order"]["fingerprint"] == "theirs"
    assert Batches([1], 1).get_state()["order"]["fingerprint"] is None


def test_what_cannot_work_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, message in (
        ({"global_batch": 10, "rank": 0, "world_size": 4}, "10 samples do not divide among 4 ranks; use 8 or 12"),
        ({"global_batch": 2, "rank": 0, "world_size": 4}, "2 samples do not divide among 4 ranks; use 4,"),
        ({"global_batch": 0}, "global_batch: 0"),
        ({"global_batch": 4, "rank": 4, "world_size": 4}, "rank 4 is none of 4"),
        ({"global_batch": 4, "rank": 1}, "both rank= and world_size="),
        ({"global_batch": 4, "workers": -1}, "workers=-1"),
        ({"global_batch": 4, "on_change": "ignore"}, "on_change='ignore'"),
    ):
        with pytest.raises(InvalidOperationError, match=message):
            Batches(range(4), **wrong)
    with pytest.raises(InvalidOperationError, match="no samples"):
        Batches([], 4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidOperationError, match="there is no process group"):
        Batches(range(4), 4)


def test_steps_of_epochs() -> None:
    data = Batches(range(10), 4)
    assert [data.steps(epochs) for epochs in (1, 2, 0.4, 0.5)] == [3, 5, 1, 2]


@pytest.mark.slow
def test_a_process_ends_though_nobody_closed_its_workers() -> None:
    script = """
import sys
from everstep.data import Batches
data = Batches(range(10), 2, workers=2)
next(data)
sys.excepthook = lambda *error, kept=data: None
"""
    subprocess.run([sys.executable, "-c", script], timeout=100, check=True)


def test_workers_end_though_somebody_holds_their_iterator() -> None:
    data = Batches(range(40), 2, workers=2, prefetch=4)
    next(data)
    held, processes = data._source, list(data._processes)  # as the traceback of an exception may
    data.close()
    assert held is not None
    assert len(processes) == 2
    assert not any(process.is_alive() for process in processes)
