"""Which of the saves on the nodes a worker group resumes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from everstep.catalog import Beginning, Location, ResumePoint
from everstep.checkpoint.local.offers import Choice, Copy, Offer, choose

BEGUN = Beginning(claim="mine", epoch=5)


def place(step: int, epoch: int = 5) -> str:
    return str(Location(step, epoch, f"{step:012x}"))


def offers(step: int, *ranks: int, of: int = 2, claim: str = "mine", epoch: int = 5) -> set[Offer]:
    return {Offer(place(step, epoch), rank, of, claim) for rank in ranks}


def committed(step: int, epoch: int = 5, root: str | None = None) -> ResumePoint:
    return ResumePoint(step, place(step, epoch), "d" * 64, root)


def found(choice: Choice | None) -> tuple[int, tuple[str, ...]] | None:
    return None if choice is None else (choice.location.step, choice.nodes)


def test_the_newest_step_of_which_every_part_is_somewhere() -> None:
    told = {"a": offers(10, 0) | offers(20, 0) | offers(30, 0), "b": offers(10, 1) | offers(20, 1)}
    assert found(choose(told, BEGUN, None, ["a", "b"])) == (20, ("a", "b"))
    assert found(choose({"a": told["a"]}, BEGUN, None, ["a"])) is None, "never a mixture, and never a part"


def test_parts_of_two_numbers_of_ranks_make_no_whole() -> None:
    told = {"a": offers(10, 0, of=2) | offers(10, 1, of=3) | offers(10, 2, of=3)}
    assert choose(told, BEGUN, None, ["a"]) is None


def test_a_copy_at_home_is_preferred_and_a_damaged_one_left_out() -> None:
    told = {"a": offers(10, 0, 1), "b": offers(10, 0, 1)}
    assert found(choose(told, BEGUN, None, ["b", "a"])) == (10, ("b", "a"))
    assert found(choose(told, BEGUN, None, ["b", "a"], {Copy("b", place(10), 0)})) == (10, ("a", "a"))
    both = {Copy("a", place(10), 0), Copy("b", place(10), 0)}
    assert choose(told, BEGUN, None, ["b", "a"], both) is None


def test_what_is_committed_bounds_what_may_be_resumed() -> None:
    told = {"a": offers(10, 0, 1)}
    for point, expected in [
        (committed(9), 10),
        (committed(10), 10),  # the same group's same step
        (committed(11), None),
        (committed(9, epoch=7), None),  # somebody has gone on from elsewhere since
        (committed(10, epoch=4), None),
        (committed(9, epoch=90, root="s3://another/job"), 10),  # epochs of another job say nothing
        (committed(10, epoch=5, root="s3://another/job"), None),
    ]:
        choice = choose(told, BEGUN, point, ["a"])
        assert (choice.location.step if choice else None) == expected, point


def test_only_the_group_that_trained_last_is_heard_and_what_it_began_from() -> None:
    zombie = offers(90, 0, 1, claim="another") | offers(95, 0, 1, claim="older", epoch=3)
    told = {"a": zombie | offers(10, 0, 1)}
    assert found(choose(told, BEGUN, None, ["a"])) == (10, ("a", "a"))
    assert choose({"a": zombie}, BEGUN, None, ["a"]) is None
    began = Beginning(claim="mine", epoch=5, local=place(95, 3))
    assert found(choose({"a": zombie}, began, None, ["a"])) == (95, ("a", "a"))
    assert choose(told, None, None, ["a"]) is None


@given(
    st.dictionaries(
        st.sampled_from("abc"),
        st.sets(
            st.builds(lambda step, rank: next(iter(offers(step, rank, of=3))), st.integers(1, 4), st.integers(0, 2))
        ),
    ),
    st.one_of(st.none(), st.integers(0, 5).map(committed)),
    st.sets(st.builds(Copy, st.sampled_from("abc"), st.integers(1, 4).map(place), st.integers(0, 2))),
)
def test_a_choice_is_whole_undamaged_and_the_newest(
    told: dict[str, set[Offer]], point: ResumePoint | None, bad: set[Copy]
) -> None:
    choice = choose(told, BEGUN, point, ["a", "b", "c"], bad)
    good = {(offer.location, offer.rank, node) for node, each in told.items() for offer in each} - {
        (copy.location, copy.rank, copy.node) for copy in bad
    }
    whole = [step for step in range(1, 5) if {rank for where, rank, _ in good if where == place(step)} == {0, 1, 2}]
    allowed = [step for step in whole if point is None or step >= point.step]
    assert (choice.location.step if choice else None) == max(allowed, default=None)
    if choice is not None:
        assert all((str(choice.location), rank, node) in good for rank, node in enumerate(choice.nodes))
