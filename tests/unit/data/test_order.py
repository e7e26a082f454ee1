from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everstep.data.order import MOST, shuffled
from everstep.errors import InvalidOperationError


@pytest.mark.slow
@settings(max_examples=40)
@given(length=st.integers(1, 2000), seed=st.integers(0, 2**63), epoch=st.integers(0, 2**40))
def test_each_place_goes_somewhere_else(length: int, seed: int, epoch: int) -> None:
    found = shuffled(np.arange(length), length, (seed, epoch))
    assert sorted(found.tolist()) == list(range(length))


@given(length=st.integers(1, MOST - 1), data=st.data())
def test_a_place_is_computed_alone_as_in_company(length: int, data: st.DataObject) -> None:
    places = np.array(data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=20)), dtype=np.int64)
    together = shuffled(places, length, (7, 3))
    assert ((together >= 0) & (together < length)).all()
    assert together.tolist() == [int(shuffled(places[i : i + 1], length, (7, 3))[0]) for i in range(len(places))]
    assert len(set(together.tolist())) == len(set(places.tolist()))


def test_the_order_never_changes() -> None:
    """These numbers are what checkpoints out there mean."""
    assert shuffled(np.arange(12), 12, (0, 0)).tolist() == GOLDEN_SMALL
    assert shuffled(np.array([0, 1, 10**11, 10**12 - 1]), 10**12, (1234, 5)).tolist() == GOLDEN_LARGE


GOLDEN_SMALL = [8, 0, 5, 7, 9, 1, 2, 6, 11, 10, 3, 4]
GOLDEN_LARGE = [595525983657, 789142434819, 303549703529, 154222475218]


@pytest.mark.parametrize("length", [3, 4, 5])
@pytest.mark.slow
def test_all_permutations_are_equally_likely(length: int) -> None:
    each = 60
    runs = each * math.factorial(length)
    counts = Counter(tuple(shuffled(np.arange(length), length, (seed, 0)).tolist()) for seed in range(runs))
    squares = sum((counts[order] - each) ** 2 / each for order in itertools.permutations(range(length)))
    freedom = math.factorial(length) - 1
    assert squares < freedom + 5 * math.sqrt(2 * freedom)


def test_neighbours_do_not_stay_neighbours() -> None:
    length = 5000
    orders = [shuffled(np.arange(length), length, (seed, seed)) for seed in range(40)]
    steps = np.concatenate([np.diff(order) % length for order in orders])
    counts = np.bincount(steps, minlength=length)[1:]
    squares = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert abs(squares - length) < 6 * math.sqrt(2 * length)
    assert abs(float(np.corrcoef(orders[0], orders[1])[0, 1])) < 0.07


def test_impossible_orders_are_refused() -> None:
    for length in (0, -1, MOST):
        with pytest.raises(InvalidOperationError, match="an order has between 1 and"):
            shuffled(np.arange(0), length, (0,))
    with pytest.raises(IndexError, match="below 5"):
        shuffled(np.array([5]), 5, (0,))
