"""The work queue: deduplication, delays, back-off and one worker a key, on a clock that the test moves."""

from __future__ import annotations

import asyncio

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everstep_operator.queue import Outcome, Pauses, Schedule, WorkQueue

STEPS = ["add", "delayed", "pop", "done", "failed", "forget", "tick"]
PAUSES = Pauses(first=1.0, most=60.0, floor=0.5, resync=600.0, jitter=0.1)


def schedule() -> Schedule[str]:
    return Schedule(PAUSES, rng=lambda: 0.5)


def test_a_key_added_often_is_worked_on_once() -> None:
    work = schedule()
    for _ in range(5):
        work.add("a", 0)
    assert work.pop(0) == "a"
    assert work.pop(0) is None


def test_a_key_added_during_its_pass_comes_again_after_it() -> None:
    work = schedule()
    work.add("a", 0)
    assert work.pop(0) == "a"
    work.add("a", 1)
    assert work.pop(1) is None
    work.done("a", 2, again_after=100)
    assert work.pop(2) == "a"


def test_the_newest_pass_decides_when_the_key_comes_back() -> None:
    work = schedule()
    work.add("a", 0)
    work.pop(0)
    work.done("a", 0, again_after=5)
    work.add("a", 1)
    assert work.pop(1) == "a"
    work.done("a", 1, again_after=50)
    assert work.pop(6) is None
    assert work.next_due() == 51
    assert work.pop(51) == "a"


def test_a_key_without_a_wish_comes_back_with_the_resync() -> None:
    work = schedule()
    work.add("a", 0)
    work.pop(0)
    work.done("a", 0)
    assert work.next_due() == 600


def test_failures_back_off_and_a_change_shortens_the_pause_only_to_the_floor() -> None:
    work = schedule()
    work.add("a", 0)
    now = 0.0
    pauses = []
    for _ in range(9):
        assert work.pop(now) == "a"
        pauses.append(work.failed("a", now))
        now += pauses[-1]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    work.pop(now)
    work.failed("a", now)
    work.add("a", now)
    assert work.pop(now) is None
    assert work.pop(now + 0.5) == "a"
    work.done("a", now + 0.5)
    work.add("a", now + 1)
    assert work.pop(now + 1) == "a"
    assert work.failed("a", now + 1) == 1


def test_a_change_during_a_failing_pass_waits_for_the_floor() -> None:
    work = schedule()
    work.add("a", 0)
    work.pop(0)
    work.add("a", 0)
    work.failed("a", 0)
    assert work.pop(0.4) is None
    assert work.pop(0.5) == "a"


def test_a_forgotten_key_leaves_nothing_unless_it_was_added_again() -> None:
    work = schedule()
    work.add("a", 0)
    work.pop(0)
    work.forget("a")
    assert len(work) == 0
    assert work.next_due() is None
    work.add("a", 1)
    work.pop(1)
    work.add("a", 2)
    work.forget("a")
    assert work.pop(2) == "a"


def test_a_delayed_add_never_postpones() -> None:
    work = schedule()
    work.add("a", 0, delay=3)
    work.add("a", 0, delay=30)
    assert work.next_due() == 3
    work.pop(3)
    work.add("a", 3, delay=2)
    work.done("a", 3, again_after=100)
    assert work.next_due() == 5


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # other things run on this machine
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "delayed", "pop", "done", "failed", "forget", "tick"]), st.sampled_from("abc")
        ),
        max_size=200,
    )
)
def test_no_key_runs_twice_at_once_and_none_is_lost(steps: list[tuple[str, str]]) -> None:
    work = schedule()
    now = 0.0
    running: set[str] = set()
    wanted: set[str] = set()
    for what, key in steps:
        if what == "add":
            work.add(key, now)
            wanted.add(key)
        elif what == "delayed":
            work.add(key, now, delay=2)
            wanted.add(key)
        elif what == "pop":
            popped = work.pop(now)
            if popped is not None:
                assert popped not in running
                running.add(popped)
                wanted.discard(popped)
        elif what == "tick":
            now += 1.0
        elif key in running:
            running.discard(key)
            if what == "done":
                work.done(key, now)
            elif what == "failed":
                work.failed(key, now)
                wanted.add(key)
            elif key in wanted:
                work.done(key, now)
            else:
                work.forget(key)
    for key in running:
        work.done(key, now)
    later = now + 1000
    found = set()
    while (popped := work.pop(later)) is not None:
        found.add(popped)
    assert wanted <= found


async def test_workers_run_keys_side_by_side_but_each_alone() -> None:
    queue: WorkQueue[str] = WorkQueue(Schedule(PAUSES), concurrency=3)
    active: dict[str, int] = {}
    seen: list[str] = []
    together = 0
    finished = asyncio.Event()

    async def handle(key: str) -> Outcome:
        nonlocal together
        active[key] = active.get(key, 0) + 1
        assert active[key] == 1
        together = max(together, sum(active.values()))
        seen.append(key)
        queue.add(key) if seen.count(key) < 3 else None
        await asyncio.sleep(0)
        active[key] -= 1
        if len(seen) == 9:
            finished.set()
        return Outcome()

    runner = asyncio.create_task(queue.run(handle))
    for key in "abc":
        queue.add(key)
    async with asyncio.timeout(5):
        await finished.wait()
    runner.cancel()
    assert sorted(seen) == sorted("aaabbbccc")
    assert together > 1


async def test_keys_wait_until_the_worker_is_permitted() -> None:
    queue: WorkQueue[str] = WorkQueue(concurrency=1)
    permitted, worked = asyncio.Event(), asyncio.Event()

    async def handle(key: str) -> Outcome:
        assert permitted.is_set()
        worked.set()
        return Outcome()

    async def wait() -> None:
        await permitted.wait()

    runner = asyncio.create_task(queue.run(handle, wait))
    queue.add("a")
    await asyncio.sleep(0)
    assert not worked.is_set()
    permitted.set()
    async with asyncio.timeout(5):
        await worked.wait()
    runner.cancel()


async def test_a_failing_key_is_told_of_and_the_others_go_on() -> None:
    queue: WorkQueue[str] = WorkQueue(Schedule(PAUSES), concurrency=1)
    told: list[tuple[str, str]] = []
    queue.on_error = lambda key, error, pause: told.append((key, str(error)))
    worked = asyncio.Event()

    async def handle(key: str) -> Outcome:
        if key == "bad":
            raise ValueError("broken")
        worked.set()
        return Outcome(gone=True)

    runner = asyncio.create_task(queue.run(handle))
    queue.add("bad")
    queue.add("good")
    async with asyncio.timeout(5):
        await worked.wait()
    runner.cancel()
    assert told == [("bad", "broken")]


def test_a_key_that_is_looked_at_often_leaves_no_trail() -> None:
    work = schedule()
    for moment in range(5000):
        work.add("a", moment)
        assert work.pop(moment) == "a"
        work.done("a", moment)
    assert len(work._heap) < 100
    assert work.next_due() == 4999 + 600


def test_keys_that_are_gone_leave_a_queue_that_nobody_works_on() -> None:
    work = schedule()
    for number in range(100):
        work.add(f"deleted-{number}", 0)
    work.add("listed", 0)
    work.add("new", 6)
    work.add("running", 0)
    while work.pop(1) != "running":
        pass
    for key in [f"deleted-{number}" for number in range(100)] + ["listed"]:
        work.done(key, 1, again_after=1000)
    assert sorted(work.forget_absent(["listed"], began=5)) == sorted(f"deleted-{number}" for number in range(100))
    assert len(work) == 3, "what a list that began earlier cannot know of stays, and what is worked on"
    work.done("running", 7, again_after=1000)
    assert work.pop(7) == "new"


async def test_a_worker_tells_how_long_its_key_was_due() -> None:
    now = [10.0]
    told: list[float] = []
    work: WorkQueue[str] = WorkQueue(schedule(), concurrency=1, clock=lambda: now[0])
    work.on_taken = told.append

    async def handle(key: str) -> Outcome:
        if key == "second":
            work.close()
        return Outcome()

    work.add("first")
    now[0] = 12.5
    work.add("second")
    now[0] = 13.0
    await work.run(handle)
    assert told == [3.0, 0.5]
