"""The local tier with one rank: what is resumed, what never is, and what a failure costs."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from everstep import Checkpointer
from everstep.catalog import JobCatalog, open_store, read_heartbeat
from everstep.checkpoint.environment import JobEnvironment, Policy
from everstep.checkpoint.local import folder
from everstep.checkpoint.local.folder import Found, LocalFolder, Slot, file_system
from everstep.checkpoint.saving.staging import _Sums
from everstep.errors import ArchitectureMismatchError, InvalidOperationError, StorageUnavailableError

from .conftest import Job, flip

Jobs = Callable[..., Job]
pytestmark = pytest.mark.slow  # each is a run or several


class Place:
    """A root and a node's folder beside it."""

    def __init__(self, base: Path) -> None:
        self.root = base / "root"
        self.folder = base / "node"

    def train(
        self, job: Job, total: int, stop_after: int | None = None, every: int = 1, remote: int = 1000, **options: Any
    ) -> tuple[list[float], Checkpointer]:
        losses = []
        options = {"local": self.folder, "local_steps": every, **options}
        with job.checkpointer(self.root, interval_steps=remote, **options) as checkpointer:
            for step in checkpointer.steps(total):
                losses.append(job.step())
                checkpointer.report(loss=losses[-1], samples=2)
                if step == stop_after:
                    break
        return losses, checkpointer

    def found(self) -> list[Found]:
        return LocalFolder(self.folder, str(self.root)).scan()

    def steps(self) -> list[int]:
        return sorted(found.part.step for found in self.found())

    def committed(self) -> list[int]:
        return [entry.step for entry in JobCatalog(open_store(str(self.root))).require().live()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def straight(job: Jobs, tmp_path: Path) -> list[float]:
    """Ten steps, never interrupted."""
    return job().run(tmp_path / "straight", 10, every=1000)


def resumed_step(checkpointer: Checkpointer) -> int | None:
    return None if checkpointer.resumed is None else checkpointer.resumed.step


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_group_that_starts_again_goes_on_from_its_node(
    job: Jobs, place: Place, straight: list[float], asynchronous: bool
) -> None:
    """Step 5 may be unfinished where its loop was left; step 4 was saved before step 5 began."""
    first, _ = place.train(job(), 10, stop_after=6, remote=4, asynchronous=asynchronous)
    assert place.committed() == [4]
    torch.manual_seed(99)
    rest, checkpointer = place.train(job(seed=3), 10, remote=4, asynchronous=asynchronous)
    assert resumed_step(checkpointer) == 5
    assert first[:5] + rest == straight
    assert place.committed() == [4, 8, 10]
    assert checkpointer.progress.samples == 20
    begun = JobCatalog(open_store(str(place.root))).require().begun
    assert begun is not None
    assert str(begun.local).startswith("checkpoints/step_000000000005-000001-")


def test_two_saves_are_kept_and_none_after_the_end(job: Jobs, place: Place) -> None:
    place.train(job(), 10, stop_after=6)
    assert place.steps() == [4, 5]
    place.train(job(), 10, stop_after=7)
    assert place.steps() == [6], "the one that was resumed goes when it has a successor"
    place.train(job(), 10)
    assert place.found() == []
    assert LocalFolder(place.folder, str(place.root)).used() == 0


def test_what_is_committed_at_the_same_step_is_taken_from_the_node(job: Jobs, place: Place) -> None:
    place.train(job(), 10, stop_after=4, every=3, remote=3)
    _, checkpointer = place.train(job(), 10, stop_after=5, every=3, remote=3)
    assert checkpointer.resumed is not None
    assert checkpointer._session.local_save == checkpointer.resumed.location


def test_a_newer_commit_counts_more(job: Jobs, place: Place) -> None:
    place.train(job(), 10, stop_after=7, every=5, remote=6)
    assert (place.steps(), place.committed()) == ([5], [6])
    _, checkpointer = place.train(job(), 10, every=5, remote=6)
    assert resumed_step(checkpointer) == 6
    assert checkpointer._session.local_save is None


@pytest.mark.parametrize("where", ["__0_0.distcp", ".metadata", "part.json"])
def test_damage_on_the_node_leads_to_the_save_before_and_then_to_the_register(
    job: Jobs, place: Place, straight: list[float], where: str
) -> None:
    place.train(job(), 10, stop_after=6, remote=3)
    newest = max(place.found(), key=lambda found: found.part.step)
    flip(newest.slot.path / where, 200)
    rest, checkpointer = place.train(job(), 10, stop_after=6, remote=100)
    assert resumed_step(checkpointer) == 4
    assert rest == straight[4:6]
    for found in place.found():
        flip(found.slot.path / where, 300)
    rest, checkpointer = place.train(job(seed=7), 10, remote=100)
    assert resumed_step(checkpointer) == 3
    assert rest == straight[3:]


def test_a_save_that_was_cut_short_is_never_resumed(
    job: Jobs, place: Place, straight: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process ends between its files and the document that would make it one."""
    finish = Slot.finish

    def late(self: Slot, part: Any, metadata: bytes) -> None:
        if part.step == 5:
            (self.path / "__0_0.distcp").write_bytes(b"half")
            raise KeyboardInterrupt
        finish(self, part, metadata)

    monkeypatch.setattr(Slot, "finish", late)
    with pytest.raises(KeyboardInterrupt):
        place.train(job(), 10, stop_after=9)
    monkeypatch.undo()
    assert place.steps() == [4]
    rest, checkpointer = place.train(job(seed=4), 10)
    assert resumed_step(checkpointer) == 4
    assert rest == straight[4:]


def test_an_older_groups_save_is_never_resumed(job: Jobs, place: Place, straight: list[float]) -> None:
    """A group that was taken over goes on, and saves a later step than its successor has."""
    zombie = job()
    with zombie.checkpointer(place.root, interval_steps=1000, local=place.folder, local_steps=1) as checkpointer:
        for step in checkpointer.steps(10):
            zombie.step()
            if step == 3:
                _, second = place.train(job(), 10, stop_after=4)
                assert resumed_step(second) == 2
            if step == 8:
                break
        checkpointer._local.close(together=False, finished=False)
        claims = {found.part.step: found.part.claim for found in place.found()}
        assert max(claims) < 7 or claims[max(claims)] == checkpointer._claim().claim
        rest, third = place.train(job(seed=9), 10)
        assert resumed_step(third) == 3
        assert rest == straight[3:]
        checkpointer._ends_process = False
    assert place.committed() == [10]


def test_a_users_choice_of_where_to_begin_is_not_overruled(job: Jobs, place: Place) -> None:
    place.train(job(), 10, stop_after=6, remote=2)
    assert (place.committed(), max(place.steps())) == ([2, 4], 5)
    _, older = place.train(job(), 10, stop_after=4, remote=1000, resume_step=2)
    assert resumed_step(older) == 2
    assert place.steps() == [3]
    _, again = place.train(job(), 10, stop_after=6, remote=1000)
    assert resumed_step(again) == 3, "what follows from that choice is its own line"
    _, fresh = place.train(job(), 10, stop_after=2, remote=1000, resume="disable")
    assert resumed_step(fresh) is None


def test_a_group_without_a_local_tier_ends_the_line(job: Jobs, place: Place) -> None:
    place.train(job(), 10, stop_after=6, remote=2)
    job().run(place.root, 10, every=1000, stop_after=5)
    _, checkpointer = place.train(job(), 10, stop_after=5)
    assert resumed_step(checkpointer) == 4


def test_a_group_that_dies_before_its_first_step_changes_nothing(job: Jobs, place: Place) -> None:
    place.train(job(), 10, stop_after=6)
    with job().checkpointer(place.root, local=place.folder, local_steps=1) as checkpointer:
        checkpointer.load_latest()
    _, checkpointer = place.train(job(), 10, stop_after=6)
    assert resumed_step(checkpointer) == 5
    _, checkpointer = place.train(job(), 10, stop_after=6)  # it began, and saved nothing of its own
    assert resumed_step(checkpointer) == 5


@pytest.mark.parametrize("full", ["limit", "device"])
def test_a_full_tier_costs_local_saves_and_nothing_else(
    job: Jobs, place: Place, straight: list[float], monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    if full == "device":

        def refuse(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "posix_fallocate", refuse)
    losses, checkpointer = place.train(job(), 10, local_bytes=1000 if full == "limit" else None)
    assert losses == straight
    assert checkpointer._local.failed == 9
    assert (place.found(), place.committed()) == ([], [10])


def test_room_for_one_save_keeps_that_one(job: Jobs, place: Place) -> None:
    _, checkpointer = place.train(job(), 10, stop_after=6, local_bytes=400 << 10)
    assert place.steps() == [1]
    assert checkpointer._local.failed == 4
    assert LocalFolder(place.folder, str(place.root)).used() <= 400 << 10


def test_the_heartbeat_tells_the_newest_step(job: Jobs, place: Place) -> None:
    place.train(job(), 10, stop_after=6, asynchronous=False)
    found = read_heartbeat(open_store(str(place.root)), 1)
    assert isinstance(found, tuple)
    assert (found[0].local_step, found[0].local_saves_failed) == (5, 0)


def test_jobs_do_not_see_each_others_saves(job: Jobs, place: Place, tmp_path: Path) -> None:
    place.train(job(), 10, stop_after=6)
    other = Place(tmp_path / "other")
    other.folder = place.folder
    _, checkpointer = other.train(job(), 4)
    assert checkpointer.resumed is None
    assert place.steps() == [4, 5]


def test_half_a_configuration_is_refused(job: Jobs, tmp_path: Path) -> None:
    with pytest.raises(InvalidOperationError, match="local_steps="):
        job().checkpointer(tmp_path, local=tmp_path / "node")
    with pytest.raises(InvalidOperationError, match="EVERSTEP_LOCAL_PATH"):
        job().checkpointer(tmp_path, local_steps=3)
    with pytest.raises(InvalidOperationError, match="local_steps=0"):
        job().checkpointer(tmp_path, local=tmp_path / "node", local_steps=0)


def test_a_load_waits_for_the_save_under_way(job: Jobs, place: Place, tmp_path: Path) -> None:
    """It changes tensors that are still being copied, and no optimizer step is there to be held."""
    job().run(tmp_path / "other", 2)
    with job().checkpointer(place.root, local=place.folder, local_steps=1) as checkpointer:
        for step in checkpointer.steps(10):
            job().step()
            if step == 2:
                saves = checkpointer._local._saves
                assert saves is not None
                assert saves.step == 1
                checkpointer.load_weights(str(tmp_path / "other"))
                assert saves.take() is None, "nothing is under way any more"
                break


def test_what_only_nodes_have_is_committed_where_nothing_is_left_to_do(job: Jobs, place: Place) -> None:
    place.train(job(), 10, stop_after=6, remote=4, asynchronous=False)
    assert place.committed() == [4]
    losses, checkpointer = place.train(job(), 5, remote=4)
    assert (losses, resumed_step(checkpointer), place.committed()) == ([], 5, [4, 5])
    place.train(job(), 5, remote=4)
    assert place.committed() == [4, 5]


def test_another_model_is_told_of_where_nothing_is_committed(job: Jobs, place: Place) -> None:
    place.train(job(), 10, stop_after=6)
    with pytest.raises(ArchitectureMismatchError):
        place.train(job(width=4), 10)
    _, checkpointer = place.train(job(), 10, stop_after=6)
    assert resumed_step(checkpointer) == 5


def test_an_object_without_a_name_there_is_told_of_where_nothing_is_committed(job: Jobs, place: Place) -> None:
    """Not a fresh start, which would drop what is whole."""
    place.train(job(), 10, stop_after=6)
    with pytest.raises(InvalidOperationError, match="ema"):
        place.train(job(), 10, ema=torch.nn.Linear(1, 1))
    _, checkpointer = place.train(job(), 10, stop_after=6)
    assert resumed_step(checkpointer) == 5


def test_folders_of_copies_that_cannot_be_made_cost_the_copies(
    job: Jobs, place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: LocalFolder) -> str:
        raise StorageUnavailableError("no such device")

    with job().checkpointer(place.root, local=place.folder, local_steps=1, local_replicas=1) as checkpointer:
        monkeypatch.setattr(LocalFolder, "make", refuse)
        for step in checkpointer.steps(4):
            job().step()
            if step == 3:
                break
    assert "local saves have no copies on other nodes: " in caplog.text
    assert 2 in place.steps()


def test_an_operator_that_mounts_nothing_ends_no_run(
    job: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy.model_validate({"local": {"interval": {"steps": 1}}})
    environment = JobEnvironment(root=str(tmp_path), policy=policy)
    job().run(tmp_path, 2, environment=environment)
    assert "its operator has mounted none" in caplog.text


def test_a_group_that_was_taken_over_leaves_its_successors_saves_alone(
    job: Jobs, place: Place, straight: list[float]
) -> None:
    """Its own first save comes when its successor's are there, and takes the place of its predecessors' alone."""
    zombie = job()
    with zombie.checkpointer(place.root, interval_steps=1000, local=place.folder, local_steps=1) as checkpointer:
        for step in checkpointer.steps(10):
            zombie.step()
            if step == 1:
                place.train(job(), 10, stop_after=4)
            if step == 5:
                break
        checkpointer._local.close(together=False, finished=False)
        checkpointer._ends_process = False
    mine = checkpointer._claim().claim
    assert {found.part.step for found in place.found() if found.part.claim == mine}, "it has saved"
    rest, third = place.train(job(seed=9), 10)
    assert resumed_step(third) == 3
    assert rest == straight[3:]


@pytest.mark.parametrize("remote", [3, 6])
def test_the_nodes_are_asked_again_when_what_is_committed_is_damaged(
    job: Jobs, place: Place, straight: list[float], remote: int
) -> None:
    """The save of step 4 is older than step 6, and newer than all that is left when that is set aside."""
    place.train(job(), 10, stop_after=7, every=2, remote=remote, asynchronous=False)
    assert (place.steps(), place.committed()[-1]) == ([4, 6], 6)
    newest = max(place.found(), key=lambda found: found.part.step)
    flip(newest.slot.path / "__0_0.distcp", 200)
    (committed,) = place.root.glob("checkpoints/step_000000000006-*")
    flip(committed / "__0_0.distcp", 200)
    rest, checkpointer = place.train(job(seed=3), 10, every=2, remote=1000)
    assert resumed_step(checkpointer) == 4
    assert rest == straight[4:]
    assert place.committed()[-1] == 10


class Growing:
    """State whose size changes."""

    def __init__(self) -> None:
        self.size = 1

    def get_state(self) -> dict[str, str]:
        return {"text": "x" * self.size}

    def set_state(self, state: dict[str, str]) -> None:
        self.size = len(state["text"])


@pytest.mark.parametrize("where", [(_Sums, "done"), (Slot, "finish")], ids=["in the copy", "after it"])
def test_a_save_that_failed_gives_its_pages_back_before_it_asks_for_new_ones(
    job: Jobs, place: Place, monkeypatch: pytest.MonkeyPatch, where: tuple[type, str]
) -> None:
    """A mapping of a file that is gone would fill a tmpfs unseen."""
    mine, data, kept = job(), Growing(), []
    check, real = LocalFolder._check, getattr(*where)

    def count(self: LocalFolder, more: int) -> None:
        maps = Path("/proc/self/maps").read_text().splitlines()
        kept.append([line for line in maps if str(place.folder) in line and line.endswith("(deleted)")])
        check(self, more)

    def fail(*arguments: Any) -> Any:
        if data.size == 2:
            raise StorageUnavailableError("no space left")
        return real(*arguments)

    monkeypatch.setattr(LocalFolder, "_check", count)
    monkeypatch.setattr(*where, fail)
    gc.disable()  # it would hide the matter, some time
    try:
        options: dict[str, Any] = {"local": place.folder, "local_steps": 1, "other": data}
        with mine.checkpointer(place.root, interval_steps=1000, asynchronous=False, **options) as checkpointer:
            for step in checkpointer.steps(6):
                mine.step()
                data.size = {3: 2, 4: 6 << 20}.get(step, data.size)
                if step == 6:
                    break
            assert checkpointer._local.failed == 1
    finally:
        gc.enable()
    assert place.steps() == [4, 5]
    assert kept == [[]] * 4


def test_what_a_load_has_left_behind_is_not_resumed(job: Jobs, place: Place) -> None:
    """Steps 5 and 6 are done twice; what was saved of them before belongs to no line any more."""
    mine = job()
    options: dict[str, Any] = {"local": place.folder, "local_steps": 1, "asynchronous": False}
    with mine.checkpointer(place.root, interval_steps=4, **options) as checkpointer:
        for step in checkpointer.steps(20):
            mine.step()
            if step == 7:
                break
        assert place.steps() == [5, 6]
        checkpointer.load(4)
        assert place.steps() == []
        for step in checkpointer.steps(20):
            mine.step()
            if step == 6:
                break
    assert (place.steps(), place.committed()) == ([5], [4])
    _, again = place.train(job(), 10, stop_after=6, remote=1000)
    assert resumed_step(again) == 5


def test_a_load_before_the_first_step_leaves_the_nodes_save_that_was_resumed(job: Jobs, place: Place) -> None:
    place.train(job(), 10, stop_after=7, remote=4, asynchronous=False)
    with job().checkpointer(place.root, local=place.folder, local_steps=1) as checkpointer:
        checkpointer.load_latest()
        assert resumed_step(checkpointer) == 6
        checkpointer.load(4)
    mine = job()
    with mine.checkpointer(place.root, local=place.folder, local_steps=1) as checkpointer:
        checkpointer.load_latest()
        assert resumed_step(checkpointer) == 6, "nothing was trained from step 4"
        checkpointer.load(4)
        assert next(checkpointer.steps(10)) == 5
    _, again = place.train(job(), 10, stop_after=6, remote=1000)
    assert resumed_step(again) == 4


def test_a_file_system_that_finds_new_room_for_each_write_is_refused(
    job: Jobs, place: Place, straight: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert file_system(Path("/proc")) == 0x9FA0
    monkeypatch.setattr(folder, "file_system", lambda _: 0x9123683E)
    losses, checkpointer = place.train(job(), 10)
    assert losses == straight
    assert (checkpointer._local.failed, place.found()) == (9, [])
    assert "is on btrfs, which looks for new room" in caplog.text


def test_the_ranks_of_a_node_remove_the_same_groups_at_the_same_time(tmp_path: Path) -> None:
    """Each of them finds what another is removing."""
    local = LocalFolder(tmp_path, "s3://bucket/job")

    def remove(rank: int) -> None:
        local.drop(local.groups(), None)
        local.scan()
        local.clear("claim")

    with ThreadPoolExecutor(4) as ranks:
        for _ in range(100):
            for rank in range(8):
                local.slot("claim", rank, "a").clear()
            list(ranks.map(remove, range(4)))
            assert not local.groups()
