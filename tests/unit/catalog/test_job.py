"""The rules of the contract, one by one, on a real directory; their interleavings are the model's business."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from everstep.catalog import (
    AUTO,
    Heartbeat,
    JobCatalog,
    Location,
    Owner,
    Resume,
    Retention,
    Source,
    ledger,
    manifest,
    open_store,
    read_heartbeat,
    resume_point,
    write_heartbeat,
)
from everstep.catalog.fork import renew, resolve
from everstep.catalog.keys import MAX_EPOCH
from everstep.catalog.rebuild import rebuild, survey
from everstep.errors import (
    CatalogMissingError,
    CheckpointCorruptError,
    CheckpointNotFoundError,
    FencedError,
    InvalidOperationError,
    OwnerConflictError,
)
from tests.unit.catalog.saves import NOW, OWNER, save

AGAIN = OWNER.model_copy(update={"uid": "u2"})
"""The same job, deleted and applied again."""


@pytest.fixture
def job(tmp_path: Path) -> JobCatalog:
    return JobCatalog(open_store(str(tmp_path / "ns" / "job")))


def lose(job: JobCatalog) -> None:
    job.store.delete(["catalog.json"])


def test_a_new_attempt_resumes_the_latest_commit_and_shuts_the_older_out(job: JobCatalog) -> None:
    first = job.fence(OWNER)
    assert (first.attempt, resume_point(first)) == (1, None)
    old = job.claim(1, "u1")
    save(old, 10)
    newest = save(old, 20)
    second = job.fence(OWNER)
    point = resume_point(second)
    assert point is not None
    assert (second.attempt, point.step, point.location) == (2, 20, newest.location)
    with pytest.raises(FencedError, match="attempt 2 has begun"):
        save(old, 30)
    with pytest.raises(FencedError, match="attempt 1 is fenced"):
        job.claim(1, "u1")
    assert [entry.step for entry in job.require().live()] == [10, 20]


def test_a_restart_in_place_shuts_out_the_orphan_of_its_own_attempt(job: JobCatalog) -> None:
    job.fence(OWNER)
    orphan = job.claim(1, "u1")
    save(orphan, 10)
    fresh = job.claim(1, "u1")
    assert fresh.resume is not None
    assert fresh.resume.step == 10
    with pytest.raises(FencedError):
        save(orphan, 20)
    save(fresh, 20)


def test_a_step_is_committed_once_and_rises(job: JobCatalog) -> None:
    job.fence(OWNER)
    claimed = job.claim(1, "u1")
    save(claimed, 10)
    with pytest.raises(InvalidOperationError, match="step 10 is not above"):
        save(claimed, 10)


def test_a_register_is_not_created_over_checkpoints(job: JobCatalog) -> None:
    job.fence(OWNER)
    save(job.claim(1, "u1"), 10)
    lose(job)
    with pytest.raises(CatalogMissingError, match="everstep rebuild"):
        job.fence(OWNER)
    with pytest.raises(CatalogMissingError):
        job.claim(1, "u1")
    with pytest.raises(CatalogMissingError):
        job.claim()
    assert job.read() is None
    assert job.sweep() == []


def test_a_register_is_not_created_where_a_checkpoint_is_known_of(job: JobCatalog) -> None:
    with pytest.raises(CatalogMissingError):
        job.fence(OWNER, expect_existing=True)


def test_a_writer_without_a_register_is_fenced(job: JobCatalog) -> None:
    job.fence(OWNER)
    claimed = job.claim(1, "u1")
    lose(job)
    with pytest.raises(FencedError, match="gone"):
        save(claimed, 10)


def test_the_same_name_takes_over_and_raises_attempt_and_epoch(job: JobCatalog) -> None:
    before = job.fence(OWNER)
    old = job.claim(1, "u1")
    save(old, 10)
    after = job.fence(OWNER.model_copy(update={"uid": "u2"}))
    assert after.owner is not None
    assert after.owner.uid == "u2"
    assert after.attempt == 2
    assert after.epoch > before.epoch
    with pytest.raises(FencedError):
        save(old, 20)
    with pytest.raises(FencedError, match="uid u1 is fenced"):
        job.claim(2, "u1")


def test_another_clusters_checkpoints_are_refused_until_adopted(job: JobCatalog) -> None:
    job.fence(OWNER)
    other = Owner(cluster="c2", namespace="ns", name="job", uid="u9")
    with pytest.raises(OwnerConflictError, match=r"everstep\.dev/adopt"):
        job.fence(other)
    assert job.fence(other, adopt=True).owner == other


def test_the_library_alone_fences_by_its_claim(job: JobCatalog) -> None:
    first = job.claim()
    save(first, 10)
    second = job.claim()
    assert (first.attempt, second.attempt) == (1, 2)
    with pytest.raises(FencedError):
        save(first, 20)


def test_the_library_alone_keeps_off_an_operators_root(job: JobCatalog) -> None:
    job.fence(OWNER)
    with pytest.raises(OwnerConflictError):
        job.claim()


def test_starting_afresh_sets_aside_and_deletes_nothing(job: JobCatalog) -> None:
    job.fence(OWNER)
    save(job.claim(1, "u1"), 10)
    fresh = job.fence(AGAIN, resume=Resume(fresh=True))
    assert resume_point(fresh) is None
    assert [entry.state for entry in fresh.checkpoints] == ["abandoned"]
    claimed = job.claim(2, "u2")
    save(claimed, 5)
    again = job.fence(AGAIN)
    point = resume_point(again)
    assert point is not None
    assert point.step == 5
    assert job.retire(Retention(last=1)) is not None
    assert len(job.require().checkpoints) == 2


@pytest.mark.parametrize("resume", [Resume(fresh=True), AUTO])
def test_a_choice_that_comes_late_passes_over_nothing_of_the_jobs_own(job: JobCatalog, resume: Resume) -> None:
    """A second operator fenced the job first, and its gang committed: the choice was for the first attempt."""
    job.fence(OWNER, resume=Resume(fresh=True))
    save(job.claim(1, "u1"), 10)
    assert [entry.step for entry in job.fence(OWNER, resume=resume).live()] == [10]


def test_an_incarnation_that_was_taken_over_from_does_not_come_back(job: JobCatalog) -> None:
    job.fence(OWNER)
    job.fence(AGAIN)
    claimed = job.claim(2, "u2")
    with pytest.raises(OwnerConflictError, match="taken over from uid u1"):
        job.fence(OWNER, resume=Resume(fresh=True))
    with pytest.raises(OwnerConflictError):
        job.delete_everything(OWNER)
    with pytest.raises(OwnerConflictError):
        job.retire(Retention(last=1), OWNER)
    save(claimed, 10)
    back = job.fence(OWNER, adopt=True)
    assert back.displaced == ("u2",)


def test_an_older_step_is_a_choice_and_later_attempts_follow_it(job: JobCatalog) -> None:
    job.fence(OWNER)
    claimed = job.claim(1, "u1")
    entries = [save(claimed, step) for step in (10, 20, 30)]
    chosen = job.fence(AGAIN, resume=Resume(location=entries[0].location))
    assert [entry.step for entry in chosen.live()] == [10]
    save(job.claim(2, "u2"), 15)
    assert [entry.step for entry in job.fence(AGAIN).live()] == [10, 15]


def test_a_fork_pins_its_sources_content_and_holds_it(tmp_path: Path) -> None:
    parent = JobCatalog(open_store(str(tmp_path / "ns" / "parent")))
    entry = save(parent.claim(), 10)
    child = JobCatalog(open_store(str(tmp_path / "ns" / "child")))
    choice = resolve(f"{parent.store.uri}/{entry.location}", child.store.uri, open_store, "ns/child")
    assert choice.source == Source(root=parent.store.uri, location=entry.location, step=10, digest=entry.digest)
    assert [hold.by for hold in parent.require().holds] == ["ns/child"]
    child.fence(OWNER, resume=choice)
    claimed = child.claim(1, "u1")
    assert claimed.resume is not None
    assert claimed.resume.uri(child.store.uri) == f"{parent.store.uri}/{entry.location}"
    again = child.fence(OWNER)
    assert resume_point(again) is not None, "a second attempt without a commit of its own starts from the source again"
    first_hold = parent.require().holds[0].until
    assert again.source is not None
    renew(again.source, open_store, "ns/child")
    assert parent.require().holds[0].until > first_hold
    save(child.claim(2, "u1"), 12)
    point = resume_point(child.fence(OWNER))
    assert point is not None
    assert (point.step, point.root) == (12, None)


def test_a_path_where_nothing_is_committed_says_what_is(tmp_path: Path) -> None:
    parent = JobCatalog(open_store(str(tmp_path / "ns" / "parent")))
    save(parent.claim(), 10)
    missing = Location(20, 1, "0123456789ab")
    with pytest.raises(CheckpointNotFoundError, match="committed there: step 10"):
        resolve(f"{parent.store.uri}/{missing}", "elsewhere", open_store, "x")
    with pytest.raises(CheckpointNotFoundError, match=r"no catalog\.json"):
        resolve(str(tmp_path / "nothing"), "elsewhere", open_store, "x")
    with pytest.raises(InvalidOperationError, match="not a checkpoint location"):
        resolve(f"{parent.store.uri}/checkpoints/step_1", "elsewhere", open_store, "x")


def test_a_quarantined_entry_gives_way_to_the_one_before(job: JobCatalog) -> None:
    job.fence(OWNER)
    claimed = job.claim(1, "u1")
    save(claimed, 10)
    bad = save(claimed, 20)
    again = job.claim(1, "u1")
    point = again.quarantine(bad.location, "flipped")
    assert point is not None
    assert point.step == 10
    assert save(again, 15).step == 15
    with pytest.raises(FencedError):
        claimed.quarantine(bad.location, "a zombie's opinion")


def test_removal_deletes_keys_only_after_the_swap_and_finishes_what_it_began(job: JobCatalog) -> None:
    job.fence(OWNER)
    claimed = job.claim(1, "u1")
    entries = [save(claimed, step) for step in (10, 20, 30, 40)]
    retired = job.retire(Retention(last=1))
    assert retired is not None
    assert [removal.step for removal in retired.removing] == [10, 20]
    assert job.store.get(f"{entries[0].location}/manifest.json")
    job.store.put(f"{entries[0].location}/users-notes.txt", b"mine")
    assert job.finish_removals() == 2
    assert [info.key for info in job.store.list(f"{entries[0].location}/")] == [
        f"{entries[0].location}/users-notes.txt"
    ]
    assert list(job.store.list(f"{entries[1].location}/")) == []
    assert job.require().removing == ()
    assert job.finish_removals() == 0


def test_failed_and_fenced_saves_are_swept_and_one_under_way_is_not(job: JobCatalog) -> None:
    job.fence(OWNER)
    old = job.claim(1, "u1")
    fenced = old.new_location(7)
    job.store.put(fenced.key("__0_0.distcp"), b"x")
    job.fence(OWNER)
    claimed = job.claim(2, "u1")
    failed = claimed.new_location(9)
    job.store.put(failed.key("__0_0.distcp"), b"x")
    committed = save(claimed, 10)
    under_way = claimed.new_location(11)
    job.store.put(under_way.key("__0_0.distcp"), b"x")
    assert sorted(job.sweep()) == sorted([str(fenced), str(failed)])
    assert list(job.store.list_folders("checkpoints/")) == sorted([committed.location, str(under_way)])


def test_a_held_entry_is_kept_until_the_hold_ends(job: JobCatalog) -> None:
    job.fence(OWNER)
    claimed = job.claim(1, "u1")
    entries = [save(claimed, step) for step in (10, 20, 30)]
    job.hold(entries[0].location, "export", job._clock() + timedelta(hours=1))
    job.retire(Retention(last=1))
    assert job.require().removing == ()
    job.release(entries[0].location, "export")
    job.retire(Retention(last=1))
    assert [removal.step for removal in job.require().removing] == [10]
    with pytest.raises(CheckpointNotFoundError):
        job.hold(entries[0].location, "late", NOW)


def test_a_lost_register_is_rebuilt_from_what_is_provably_committed(job: JobCatalog) -> None:
    job.fence(OWNER)
    claimed = job.claim(1, "u1")
    save(claimed, 10, score=0.5)
    damaged = save(claimed, 20)
    torn = claimed.new_location(30)
    job.store.put(torn.key("__0_0.distcp"), b"x")
    job.store.put(f"{damaged.location}/__0_0.distcp", b"shaRd")
    before = job.require()
    lose(job)
    found = survey(job)
    assert {rejected.location for rejected in found.rejected} == {damaged.location, str(torn)}
    catalog = rebuild(job, found)
    assert [entry.model_dump(exclude={"committed"}) for entry in catalog.checkpoints] == [
        entry.model_dump(exclude={"committed"}) for entry in before.checkpoints if entry.step == 10
    ]
    assert catalog.epoch > before.epoch
    with pytest.raises(FencedError):
        save(claimed, 40)
    save(job.claim(), 40)
    with pytest.raises(InvalidOperationError, match="nothing is rebuilt over it"):
        rebuild(job, found)


def test_a_mark_that_is_no_mark_leaves_one_save_out_of_a_rebuild(job: JobCatalog) -> None:
    job.fence(OWNER)
    claimed = job.claim(1, "u1")
    save(claimed, 10)
    odd = save(claimed, 20)
    mark = json.loads(job.store.get(f"{odd.location}/COMMITTED"))
    lose(job)
    for bad in (b"x" * 5000, b"{}", *(json.dumps(mark | {key: -1}).encode() for key in mark)):
        job.store.put(f"{odd.location}/COMMITTED", bad)
        found = survey(job)
        assert [entry.step for entry in found.catalog.checkpoints] == [10]
        assert [rejected.location for rejected in found.rejected] == [odd.location]


def test_what_makes_no_register_is_refused_by_a_rebuild(job: JobCatalog) -> None:
    """Such as a folder of the last epoch, above which none can rise."""
    job.fence(OWNER)
    save(job.claim(1, "u1"), 10)
    job.store.put(f"checkpoints/step_{5:012}-{MAX_EPOCH:06}-{0:012x}/__0_0.distcp", b"x")
    lose(job)
    with pytest.raises(InvalidOperationError, match=r"makes no catalog: epoch: .*less than or equal"):
        survey(job)


def test_a_user_removes_what_is_set_aside_but_not_what_safety_keeps(job: JobCatalog) -> None:
    job.fence(OWNER)
    first = save(job.claim(1, "u1"), 10)
    job.fence(AGAIN, resume=Resume(fresh=True))
    claimed = job.claim(2, "u2")
    entries = [save(claimed, step) for step in (5, 15, 25)]
    with pytest.raises(InvalidOperationError, match=r"step 15 .* stays: fallback"):
        job.prune([entries[1].location])
    job.pin(entries[0].location)
    with pytest.raises(InvalidOperationError, match="stays: pinned"):
        job.prune([first.location, entries[0].location])
    job.prune([first.location])
    job.prune([first.location])  # again after a lost answer
    job.finish_removals()
    assert list(job.store.list(first.location)) == []
    assert [entry.step for entry in job.require().checkpoints] == [5, 15, 25]
    with pytest.raises(CheckpointNotFoundError):
        job.prune([first.location])


def test_a_job_that_goes_with_its_checkpoints_leaves_only_what_is_not_its_own(job: JobCatalog) -> None:
    job.fence(OWNER)
    claimed = job.claim(1, "u1")
    for step in (10, 20, 30):
        save(claimed, step)
    job.store.put(claimed.new_location(40).key("__0_0.distcp"), b"x")
    job.store.put("notes.txt", b"mine")
    job.delete_everything(OWNER)
    assert [info.key for info in job.store.list("")] == ["notes.txt"]
    with pytest.raises(FencedError):
        save(claimed, 50)


def test_a_deletion_that_hangs_spares_the_saves_of_the_next_incarnation(
    job: JobCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its call was given up on, the name was used again, and then its thread goes on."""
    job.fence(OWNER)
    save(job.claim(1, "u1"), 10)
    real = JobCatalog.finish_removals

    def hang(self: JobCatalog, most: int = 100) -> int:
        monkeypatch.undo()
        real(self, most)
        self.fence(AGAIN)
        save(self.claim(self.require().attempt, "u2"), 5)
        return 0

    monkeypatch.setattr(JobCatalog, "finish_removals", hang)
    with pytest.raises(OwnerConflictError):
        job.delete_everything(OWNER)
    entry = job.require().latest()
    assert entry is not None
    assert job.manifest(entry).step == 5


def test_a_loss_that_is_no_number_leaves_a_save_that_can_be_resumed(job: JobCatalog) -> None:
    entry = save(job.claim(), 10, score=float("nan"), metrics={"loss": float("nan"), "lr": 0.1, "norm": float("inf")})
    assert entry.score is None
    manifest = job.manifest(entry)
    assert manifest.metrics == {"lr": 0.1}
    assert manifest.score is None


def test_a_sweep_of_many_folders_decides_on_a_document_read_after_each_listing(
    job: JobCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "BATCH", 2)
    job.fence(OWNER)
    old = job.claim(1, "u1")
    torn = [old.new_location(step) for step in range(1, 6)]
    for location in torn:
        job.store.put(location.key("__0_0.distcp"), b"x")
    job.fence(OWNER)
    assert job.sweep() == [str(location) for location in torn]


def test_a_forks_source_is_checked_without_reading_it_as_a_document(tmp_path: Path) -> None:
    parent = JobCatalog(open_store(str(tmp_path / "parent")))
    entry = save(parent.claim(), 10)
    parent.check_manifest(entry)
    parent.store.put(f"{entry.location}/manifest.json", b"{}")
    with pytest.raises(CheckpointCorruptError, match="SHA-256"):
        resolve(parent.store.uri, "elsewhere", open_store, "x")
    parent.store.delete([f"{entry.location}/manifest.json"])
    with pytest.raises(CheckpointCorruptError, match="missing"):
        parent.check_manifest(entry)


@pytest.mark.parametrize("step", [-1, 10**12])
def test_a_step_that_no_location_can_hold_is_refused_before_anything_is_written(job: JobCatalog, step: int) -> None:
    with pytest.raises(InvalidOperationError, match="not a checkpoint location"):
        job.claim().new_location(step)


def test_the_claim_says_what_was_resumed_in_the_end(job: JobCatalog) -> None:
    job.fence(OWNER)
    claimed = job.claim(1, "u1")
    good, bad = save(claimed, 10), save(claimed, 20)
    again = job.claim(1, "u1")
    again.quarantine(bad.location, "flipped")
    claim = job.require().claim
    assert claim is not None
    assert claim.resumed == good.location


def test_a_fence_that_comes_too_late_begins_nothing(tmp_path: Path) -> None:
    """A deposed operator's, decided before its successor's: it would cost a gang that trains."""
    job = JobCatalog(open_store(str(tmp_path)))
    job.fence(OWNER, expected=0)
    job.fence(OWNER, expected=1)
    with pytest.raises(FencedError, match="attempt 2 has begun since attempt 1 was looked at"):
        job.fence(OWNER, expected=1)
    assert job.require().attempt == 2
    assert job.fence(OWNER, expected=2).attempt == 3
    later = OWNER.model_copy(update={"uid": "another"})
    assert job.fence(later, expected=0).attempt == 4, "a namesake's is taken over"


def test_a_manifest_that_nobody_would_read_is_never_committed(job: JobCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    job.fence(OWNER)
    claimed = job.claim(1, "u1")
    save(claimed, 10)
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(InvalidOperationError, match="the manifest of step 20 would have"):
        save(claimed, 20)
    assert [entry.step for entry in job.require().live()] == [10]


def test_a_heartbeat_with_very_many_metrics_is_read(job: JobCatalog) -> None:
    metrics = {f"gradient_norm/layer_{number:06}": 0.123456789012 for number in range(5000)}
    beat = Heartbeat(attempt=1, epoch=2, beat=3, time=NOW, phase="training", phase_since=NOW, step=4, metrics=metrics)
    write_heartbeat(job.store, beat)
    found = read_heartbeat(job.store, 1)
    assert isinstance(found, tuple)
    assert list(found[0].metrics) == list(metrics)[: len(found[0].metrics)]
    assert 500 < len(found[0].metrics) < 5000
    assert found[0].model_copy(update={"metrics": {}}) == beat.model_copy(update={"metrics": {}})
