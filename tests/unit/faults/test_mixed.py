"""What a seed of a mixed trial stands for is the same each time, and every kind has its turn."""

from __future__ import annotations

from tests.faults.mixed import KINDS, MixedTrial
from tests.faults.trials import FAULTS, FEW, MOMENTS, Trial


def of(seed: int) -> MixedTrial:
    return MixedTrial.of(seed, steps=60, save_every=5)


def test_a_seed_always_stands_for_the_same_trial() -> None:
    assert [of(seed) for seed in range(50)] == [of(seed) for seed in range(50)]
    assert len({str(of(seed).blows) for seed in range(50)}) == 50


def test_every_kind_comes_first_in_turn() -> None:
    assert [of(seed).blows[0].kind for seed in range(len(KINDS))] == list(KINDS)


def test_blows_fall_in_order_after_steps_that_are_saved_before_the_end() -> None:
    for seed in range(200):
        moments = [blow.after_step for blow in of(seed).blows]
        assert moments == sorted(moments)
        assert all(step % 5 == 0 and step < 55 for step in moments)
        assert 3 <= len(moments) <= 4


def test_the_few_kill_trials_have_each_moment_and_each_fault() -> None:
    trials = [Trial.of(seed) for seed in FEW]
    assert {trial.moment for trial in trials} == set(MOMENTS)
    assert {trial.fault for trial in trials} == set(FAULTS)
