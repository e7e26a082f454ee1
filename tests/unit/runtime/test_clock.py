"""The API server's clock, as its answers tell it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everstep_operator.clock import DOUBT, ServerClock

TRUE = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
"""What the server's clock says when the monotonic one says 0."""


class Machine:
    """An operator's machine whose clock is `off` seconds ahead of the server's."""

    def __init__(self, off: float) -> None:
        self.seconds = 0.0
        self.clock = ServerClock(lambda: TRUE.timestamp() + off + self.seconds, lambda: self.seconds)

    def ask(self, there: float = 0.0, back: float = 0.0) -> None:
        """An answer that takes `there` seconds until it is stamped and `back` until it is here."""
        asked = self.clock.asks()
        self.seconds += there
        date = (TRUE + timedelta(seconds=self.seconds)).replace(microsecond=0)
        self.seconds += back
        self.clock.told(format_datetime(date, usegmt=True), asked)

    @property
    def error(self) -> float:
        return (self.clock.now() - TRUE).total_seconds() - self.seconds


@pytest.mark.parametrize("off", [1200.0, -1200.0, 86400.0 * 400])
def test_one_answer_sets_a_clock_that_is_off_right(off: float) -> None:
    machine = Machine(off)
    assert machine.error == pytest.approx(off)
    machine.ask(there=0.01, back=0.02)
    assert abs(machine.error) <= 1.1


def test_a_clock_that_is_right_stays_as_exact_as_it_is() -> None:
    machine = Machine(0.0)
    for _ in range(50):
        machine.seconds += 0.37
        machine.ask(there=0.01)
        assert machine.error == pytest.approx(0.0, abs=1e-5)


@given(st.lists(st.tuples(st.floats(0, 40), st.floats(0, 30), st.floats(0, 30)), min_size=1), st.floats(-1e6, 1e6))
def test_it_is_never_further_off_than_the_answer_leaves_open(
    answers: list[tuple[float, float, float]], off: float
) -> None:
    machine, bound = Machine(off), float("inf")
    for pause, there, back in answers:
        machine.seconds += pause
        machine.ask(there, back)
        bound = min(bound, there + back + 1.0)
        assert abs(machine.error) <= bound + 1e-3


def test_one_server_of_several_whose_clock_is_off_changes_nothing() -> None:
    right = Machine(0.0)
    for _ in range(200):
        right.seconds += 1
        right.ask()
        right.clock.told(format_datetime(TRUE + timedelta(hours=1, seconds=right.seconds), usegmt=True), right.seconds)
        assert abs(right.error) <= 1.0


def test_a_step_that_all_answers_tell_of_is_believed_in_the_end() -> None:
    machine = Machine(0.0)
    machine.ask()
    machine.clock._ahead += 3600
    for _ in range(int(DOUBT) + 1):
        machine.ask()
        machine.seconds += 1
    machine.ask()
    assert abs(machine.error) <= 1.1


def test_what_is_no_date_tells_nothing() -> None:
    machine = Machine(5.0)
    for told in (None, "", "soon", "Thu, 99 Jan 2026 12:00:00 GMT"):
        machine.clock.told(told, 0.0)
        assert machine.error == pytest.approx(5.0)
