"""The checkpointer goes by the policy that the operator gives it in EVERSTEP_POLICY."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from everstep.catalog import JobCatalog, WeightSets, open_store, read_heartbeat
from everstep.catalog.store.posix import PosixStore
from everstep.checkpoint import failures
from everstep.checkpoint.environment import read_environment
from everstep.checkpoint.local.folder import LocalFolder
from everstep.errors import FencedError, SavesFailedError, StorageUnavailableError
from everstep.weights import WeightsWatcher
from tests.unit.checkpoint.conftest import Job, steps_of

Jobs = Callable[..., Job]


@pytest.fixture
def train(job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[int, float | None]]]:
    """Trains six steps under a policy; steps and scores of what is committed."""

    def run(**policy: Any) -> list[tuple[int, float | None]]:
        monkeypatch.setenv("EVERSTEP_ROOT", str(tmp_path))
        monkeypatch.setenv("EVERSTEP_POLICY", json.dumps({"keepLast": 9, "async": False, **policy}))
        mine = job()
        with mine.checkpointer(tmp_path, environment=read_environment()) as checkpointer:
            for step in checkpointer.steps(6):
                mine.step()
                metrics: dict[str, Any] = {"eval/loss": float(step)} if step % 4 == 0 else {}
                checkpointer.report(score=0.5, **metrics)
        return [(entry.step, entry.score) for entry in JobCatalog(open_store(str(tmp_path))).require().live()]

    return run


def test_saves_fall_due_by_steps(train: Callable[..., list[tuple[int, float | None]]]) -> None:
    assert [step for step, _ in train(interval={"steps": 3})] == [3, 6]


def test_saves_fall_due_by_seconds(train: Callable[..., list[tuple[int, float | None]]]) -> None:
    """Agreed upon at one step, saved after the next; the last step is saved in any case."""
    assert [step for step, _ in train(interval={"seconds": 1e-6})] == [2, 4, 6]
    assert [step for step, _ in train(interval={"seconds": 3600})] == [2, 4, 6], "the run is done: nothing is added"


def test_the_metric_that_is_named_is_the_score(train: Callable[..., list[tuple[int, float | None]]]) -> None:
    """Only the step that reported it has a score."""
    found = train(interval={"steps": 2}, keepBest={"metric": "eval/loss"})
    assert found == [(2, None), (4, 4.0), (6, None)]


@pytest.mark.parametrize(("policy", "metric"), [({}, "score"), ({"keepBest": {"metric": "eval/loss"}}, "eval/loss")])
def test_a_score_says_which_metric_it_is_of(
    train: Callable[..., list[tuple[int, float | None]]], tmp_path: Path, policy: dict[str, Any], metric: str
) -> None:
    train(interval={"steps": 2}, **policy)
    catalog = JobCatalog(open_store(str(tmp_path)))
    entries = catalog.require().live()
    assert {entry.score_of for entry in entries if entry.score is not None} == {metric}
    assert {entry.score_of for entry in entries if entry.score is None} <= {None}
    assert [catalog.manifest(entry).score_of for entry in entries] == [entry.score_of for entry in entries]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_training_waits_for_a_save_or_does_not(
    job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    """The store takes nothing before the third step has begun. Whoever waits for it gets there after its patience."""
    begun, put = threading.Event(), PosixStore.put
    seen: list[bool] = []

    def slowly(self: PosixStore, key: str, *rest: Any, **options: Any) -> Any:
        if key.endswith("manifest.json"):
            seen.append(begun.wait(60 if asynchronous else 1))
        return put(self, key, *rest, **options)

    monkeypatch.setattr(PosixStore, "put", slowly)
    monkeypatch.setenv("EVERSTEP_ROOT", str(tmp_path))
    monkeypatch.setenv("EVERSTEP_POLICY", json.dumps({"interval": {"steps": 2}, "async": asynchronous}))
    mine = job()
    with mine.checkpointer(tmp_path, environment=read_environment()) as checkpointer:
        for step in checkpointer.steps(4):
            if step == 3:
                begun.set()
            mine.step()
    assert seen[0] is asynchronous


@pytest.mark.parametrize("limit", [1e-9, 3600])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_saves_that_fail_for_too_long_end_the_run(
    job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool, limit: float
) -> None:
    """With a code that says so. Within the limit training goes on, and the next save that stands begins it anew."""
    put = PosixStore.put
    steps: list[int] = []

    def refuse(self: PosixStore, key: str, *rest: Any, **options: Any) -> Any:
        if key.endswith(".distcp") and not steps[-1] > 6:
            raise StorageUnavailableError("no route to the disk")
        return put(self, key, *rest, **options)

    monkeypatch.setattr(PosixStore, "put", refuse)
    monkeypatch.setenv("EVERSTEP_ROOT", str(tmp_path))
    policy = {"interval": {"steps": 2}, "async": asynchronous, "saveTimeoutSeconds": limit}
    monkeypatch.setenv("EVERSTEP_POLICY", json.dumps(policy))
    with pytest.raises(SystemExit) if limit < 1 else nullcontext() as end:
        mine = job()
        with mine.checkpointer(tmp_path, script=True, environment=read_environment()) as checkpointer:
            for step in checkpointer.steps(12):
                steps.append(step)
                mine.step()
    found = read_heartbeat(open_store(str(tmp_path)), 1)
    assert isinstance(found, tuple)
    if end is None:
        assert (found[0].saves_failed_in_a_row, steps[-1]) == (0, 12)
        assert found[0].saves_failed >= 2
    else:
        assert end.value.code == 74
        assert found[0].saves_failed_in_a_row == found[0].saves_failed > 0
        assert "no save has succeeded for" in str(found[0].fatal)
        assert steps[-1] <= 6, "the save of step 2 is heard of at step 4, and its end agreed upon one step later"


def test_only_failures_one_after_the_other_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("everstep.checkpoint.failures.time.monotonic", lambda: now[0])
    found, error = failures.SaveFailures(limit=60), StorageUnavailableError("no answer")
    for _ in range(4):
        found.count(1, error)
        now[0] += 59
        assert not found.overdue
        found.committed()
    found.count(8, error)
    now[0] += 60
    found.count(9, error)
    assert found.overdue
    with pytest.raises(SavesFailedError, match=r"for 60 s, 2 in a row .* saveTimeoutSeconds is 60; step 9 .*no answer"):
        raise found.error()
    assert (found.total, found.in_a_row) == (6, 2)
    assert not failures.SaveFailures(None, since=-(10.0**9)).overdue


def published(root: Path) -> list[tuple[int, int]]:
    """Steps of the weights that stand, and how many sets there have ever been."""
    catalog = WeightSets(open_store(str(root))).require()
    return [(entry.step, entry.seq) for entry in catalog.live()]


def test_weights_are_published_by_steps(train: Callable[..., Any], tmp_path: Path) -> None:
    """The last step's are published in any case."""
    train(interval={"steps": 6}, weights={"interval": {"steps": 4}})
    assert published(tmp_path) == [(4, 1), (6, 2)]


def test_weights_are_published_by_seconds(train: Callable[..., Any], tmp_path: Path) -> None:
    """Agreed upon at one step, published after the next."""
    train(interval={"steps": 6}, weights={"interval": {"seconds": 1e-6}, "keepLast": 9})
    assert published(tmp_path) == [(2, 1), (4, 2), (6, 3)]


def test_so_many_sets_of_weights_are_kept(train: Callable[..., Any], tmp_path: Path) -> None:
    train(interval={"steps": 6}, weights={"interval": {"steps": 1}, "keepLast": 3})
    assert published(tmp_path) == [(4, 4), (5, 5), (6, 6)]
    assert len(list((tmp_path / "weights").iterdir())) == 3


def test_a_loop_of_its_own_is_told_what_it_does_not_do(
    job: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = job()
    with mine.checkpointer(tmp_path, local=tmp_path / "node", local_steps=1, weights_steps=1) as checkpointer:
        for step in (1, 2):
            mine.step()
            checkpointer.due(step)
    told = "checkpoint.local and checkpoint.weights: only loops over steps() do that, this one does not"
    assert caplog.messages.count(told) == 1


def test_without_a_policy_weights_are_published_when_asked_for(job: Jobs, tmp_path: Path) -> None:
    mine = job()
    with mine.checkpointer(tmp_path, interval_steps=10) as checkpointer:
        for step in checkpointer.steps(4):
            mine.step()
            if step == 2:
                checkpointer.publish_weights()
                assert published(tmp_path) == [(2, 1)]
    assert published(tmp_path) == [(2, 1)]
    weights = WeightsWatcher(str(tmp_path)).poll()
    assert weights is not None
    plain = job(seed=9).model
    weights.load_into(plain)
    with job().checkpointer(tmp_path, weights_steps=3) as checkpointer:
        assert list(checkpointer.steps(6)) == [5, 6]
    assert published(tmp_path) == [(2, 1), (6, 2)]


def test_weights_that_storage_does_not_take_cost_no_step(
    job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put = PosixStore.put

    def fail(self: PosixStore, key: str, body: Any, sums: Any = ()) -> int:
        if key.startswith("weights/step_000000000002"):
            raise StorageUnavailableError("the bucket is on fire")
        return put(self, key, body, sums)

    monkeypatch.setattr(PosixStore, "put", fail)
    mine = job()
    with mine.checkpointer(tmp_path, interval_steps=4, weights_steps=2) as checkpointer:
        assert list(checkpointer.steps(4)) == [1, 2, 3, 4]
    assert published(tmp_path) == [(4, 1)]
    assert "the weights of step 2 were not published: rank 0: the bucket is on fire" in caplog.text


def test_a_fenced_run_that_publishes_ends(job: Jobs, tmp_path: Path) -> None:
    """Publications go on beside the steps: that of step 2 may be in time or not, and one after it tells."""
    taken: list[int] = []

    def train() -> None:
        mine = job()
        with mine.checkpointer(tmp_path, interval_steps=99, weights_steps=1) as checkpointer:
            for step in checkpointer.steps(50):
                mine.step()
                taken.append(step)
                if step == 3:
                    JobCatalog(open_store(str(tmp_path))).claim()

    with pytest.raises(FencedError):
        train()
    assert [step for step, _ in published(tmp_path)] in ([1], [1, 2])
    assert taken[-1] in (3, 4)


def locally(
    job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int = 1 << 30, **interval: Any
) -> list[int]:
    """Trains six steps of ten; the steps that the local tier has then, and how many it has not taken."""
    monkeypatch.setenv("EVERSTEP_ROOT", str(tmp_path))
    monkeypatch.setenv("EVERSTEP_LOCAL_PATH", str(tmp_path / "node"))
    monkeypatch.setenv("EVERSTEP_LOCAL_BYTES", str(most))
    monkeypatch.setenv("EVERSTEP_POLICY", json.dumps({"local": {"interval": interval, "medium": "Memory"}}))
    mine = job()
    with mine.checkpointer(tmp_path, environment=read_environment()) as checkpointer:
        for step in checkpointer.steps(10):
            mine.step()
            if step == 7:
                break
    found = LocalFolder(tmp_path / "node", str(tmp_path))
    assert found.used() <= most
    return [*sorted(each.part.step for each in found.scan()), checkpointer._local.failed]


def test_local_saves_fall_due_by_steps(job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locally(job, tmp_path, monkeypatch, steps=2) == [4, 6, 0]


def test_local_saves_fall_due_by_seconds(job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agreed upon at one step, saved after the next."""
    assert locally(job, tmp_path, monkeypatch, seconds=1e-6) == [4, 6, 0]
    assert locally(job, tmp_path / "other", monkeypatch, seconds=3600) == [0]


def test_the_local_tier_keeps_to_its_size(job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save of this job takes 256 KiB and a little: the first stays, as a second has no room beside it."""
    assert locally(job, tmp_path, monkeypatch, most=400 << 10, steps=2) == [2, 2]
    assert locally(job, tmp_path / "other", monkeypatch, most=200 << 10, steps=2) == [3]


def test_a_save_without_a_score_is_told_of_once_where_the_best_are_kept(
    job: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with job().checkpointer(tmp_path, interval_steps=1) as checkpointer:
        checkpointer.keep_best(1)
        for step in checkpointer.steps(4):
            checkpointer.report(loss=float(step))
    told = "step 1 has no score, and the best are to be kept: report(score=…) in a step that is saved gives it one"
    assert [message for message in caplog.messages if "no score" in message] == [told]
    assert steps_of(tmp_path) == [1, 2, 3, 4]
