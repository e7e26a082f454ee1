"""The register of weights: who may publish, what stays, and what is left of a publication that failed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everstep.catalog import (
    Claimed,
    Entry,
    File,
    JobCatalog,
    Location,
    Manifest,
    Progress,
    Register,
    WeightSets,
    open_store,
)
from everstep.catalog.keys import WEIGHTS, is_asset
from everstep.catalog.store import Store, SwapUnanswered, Unchanged, Versioned
from everstep.catalog.verify import block_sums, verify_save
from everstep.errors import CheckpointCorruptError, FencedError
from tests.unit.catalog.saves import NOW, OWNER, save


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "ns" / "job"))


def stored(store: Store, claimed: Claimed, step: int, body: bytes = b"weights") -> Manifest:
    """Files of a set, stored and not yet published."""
    location = Location.new(step, claimed.epoch, WEIGHTS)
    store.put(location.key("model.safetensors"), body)
    return Manifest(
        location=str(location),
        step=step,
        epoch=claimed.epoch,
        attempt=claimed.attempt,
        world_size=1,
        files=(File(name="model.safetensors", size=len(body), blocks=block_sums(body), rank=0),),
        progress=Progress(step=step),
        started=NOW,
        written=NOW,
    )


def publish(sets: WeightSets, claimed: Claimed, step: int, keep: int = 2) -> Entry:
    return sets.publish(claimed.id, stored(sets.store, claimed, step), keep)


def test_the_newest_set_is_one_read_away_and_old_ones_go(store: Store) -> None:
    claimed, sets = JobCatalog(store).claim(), WeightSets(store)
    sets.take(claimed.id)
    for step in (1, 2, 3, 4):
        publish(sets, claimed, step)
        sets.finish_removals()
    assert [entry.step for entry in sets.require().live()] == [3, 4]
    assert sets.require().removing == ()
    assert {Location.parse(folder).step for folder in store.list_folders(WEIGHTS)} == {3, 4}
    latest = sets.require().latest()
    assert latest is not None
    verify_save(store, sets.manifest(latest))
    assert JobCatalog(store).require().checkpoints == (), "the job's register does not know of weights"


def test_of_a_fenced_worker_group_nothing_is_published(store: Store) -> None:
    job, sets = JobCatalog(store), WeightSets(store)
    old = job.claim()
    sets.take(old.id)
    publish(sets, old, 10)
    job.claim()  # has not looked at the weights yet
    with pytest.raises(FencedError):
        publish(sets, old, 11)
    with pytest.raises(FencedError):
        sets.take(old.id)
    assert [entry.step for entry in sets.require().live()] == [10]


def test_a_swap_that_was_under_way_when_the_successor_came_is_lost(store: Store) -> None:
    """Fenced after its last look at the claim: the token of the document that it read fits no more."""
    job = JobCatalog(store)
    old = job.claim()
    late = WeightSets(store)
    late.take(old.id)
    overtaken: Any = Overtaken(store)
    overtaken.before_swap = lambda: WeightSets(store).take(job.claim().id)
    register = Register(overtaken, "weights.json")
    manifest = stored(store, old, 11)
    with pytest.raises(FencedError):
        WeightSets(store, register).publish(old.id, manifest, 2)
    assert WeightSets(store).require().live() == []


class Overtaken:
    """Lets somebody else act just before its first swap; and loses the answers of `silent` swaps that it made."""

    def __init__(self, store: Store, silent: int = 0) -> None:
        self._store = store
        self.silent = silent
        self.before_swap: Callable[[], None] = lambda: None

    @property
    def uri(self) -> str:
        return self._store.uri

    def read_register(self, key: str, known: str | None = None) -> Versioned | Unchanged | None:
        return self._store.read_register(key, known)

    def swap_register(self, key: str, body: bytes, token: str | None) -> str:
        first, self.before_swap = self.before_swap, lambda: None
        first()
        answer = self._store.swap_register(key, body, token)
        if self.silent:
            self.silent -= 1
            raise SwapUnanswered("lost")
        return answer


def test_an_answer_that_never_came_publishes_once(store: Store) -> None:
    claimed = JobCatalog(store).claim()
    silent: Any = Overtaken(store, silent=2)
    sets = WeightSets(store, Register(silent, "weights.json"))
    sets.take(claimed.id)
    assert sets.publish(claimed.id, stored(store, claimed, 1), 2).seq == 1
    assert [(entry.seq, entry.step) for entry in sets.require().live()] == [(1, 1)]


def test_after_a_restart_steps_may_fall_and_what_was_torn_is_swept(store: Store) -> None:
    job, sets = JobCatalog(store), WeightSets(store)
    first = job.claim()
    sets.take(first.id)
    publish(sets, first, 10)
    torn = stored(store, first, 11)
    second = job.claim()
    sets.take(second.id)
    assert sets.sweep() == [torn.location]
    entry = publish(sets, second, 5)
    assert (entry.seq, entry.epoch) == (2, second.epoch)
    latest = sets.require().latest()
    assert latest is not None
    assert latest.step == 5


def test_a_register_of_weights_that_is_lost_is_made_again(store: Store) -> None:
    """It decides nothing about a resume: there is nothing to protect but consumers, who look at locations."""
    job, sets = JobCatalog(store), WeightSets(store)
    claimed = job.claim()
    sets.take(claimed.id)
    publish(sets, claimed, 1)
    store.delete(["weights.json"])
    sets.take(claimed.id)
    assert publish(sets, claimed, 2).seq == 1


def test_the_manifest_is_the_one_that_was_published(store: Store) -> None:
    claimed, sets = JobCatalog(store).claim(), WeightSets(store)
    sets.take(claimed.id)
    entry = publish(sets, claimed, 1)
    store.put(f"{entry.location}/manifest.json", b"{}")
    with pytest.raises(CheckpointCorruptError):
        sets.manifest(entry)


def test_the_end_of_a_job_takes_its_weights_along_and_nobody_elses(store: Store) -> None:
    job, sets = JobCatalog(store), WeightSets(store)
    job.fence(OWNER)
    claimed = job.claim(1, OWNER.uid)
    sets.take(claimed.id)
    save(claimed, 1)
    publish(sets, claimed, 1)
    stored(store, claimed, 2)
    sets.delete_everything(OWNER.model_copy(update={"uid": "another"}))
    assert len(sets.require().live()) == 1
    job.delete_everything(OWNER)
    assert list(store.list("")) == []
    assert sets.read() is None


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("config.json", True),
        ("tokenizer.model", True),
        ("manifest.json", False),
        ("model.safetensors", False),
        ("model.safetensors.index.json", False),
        ("COMMITTED", False),
        ("../secret", False),
        (".hidden", False),
    ],
)
def test_what_may_lie_beside_weights(name: str, fits: bool) -> None:
    assert is_asset(name) is fits
