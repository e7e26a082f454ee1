"""The checker finds what it is there to find: a good history passes, and each way to break the contract is named."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from awscrt.checksums import crc32c

from tests.faults.check_history import violations
from tests.faults.history import History, Json, Key, Version
from tests.faults.rules import BLOCK

ROOT = "s3://bucket/jobs/ns/job"
BEGIN = datetime(2030, 1, 1, tzinfo=UTC)
POLICY = {"interval": {"steps": 5}, "keepLast": 2}


def location(step: int, epoch: int) -> str:
    return f"checkpoints/step_{step:012}-{epoch:06}-{step:012x}"


class Story:
    """Builds a history as the product would: a list of documents, objects as old as the entry that names them."""

    def __init__(self) -> None:
        self.documents: list[Json] = []
        self.keys: dict[str, Key] = {}
        self.bodies: dict[str, bytes] = {}
        self.now: Json = {"generation": 0, "attempt": 0, "epoch": 0, "sequence": 0, "fence": None, "claim": None}
        self.now |= {"checkpoints": [], "removing": [], "holds": []}

    def at(self, generation: int) -> datetime:
        return BEGIN + timedelta(seconds=10 * generation)

    def swap(self, **changes: object) -> None:
        self.now = copy.deepcopy(self.now | changes)
        self.now["generation"] += 1
        self.now["swap"] = f"swap {self.now['generation']}"
        self.documents.append(copy.deepcopy(self.now))

    def fence(self) -> None:
        epoch = self.now["epoch"] + 1
        self.swap(attempt=self.now["attempt"] + 1, epoch=epoch, fence=f"fence {epoch}", claim=None)

    def claim(self) -> None:
        entries = sorted(self.now["checkpoints"], key=lambda entry: entry["seq"])
        epoch = self.now["epoch"] + 1
        resumed = entries[-1]["location"] if entries else None
        claim = {"id": f"claim {epoch}", "attempt": self.now["attempt"], "epoch": epoch, "resumed": resumed}
        self.swap(epoch=epoch, claim=claim)

    def begin(self, local: str | None) -> None:
        claim = self.now["claim"]
        self.swap(begun={"claim": claim["id"], "epoch": claim["epoch"], "local": local})

    def commit(self, step: int, epoch: int | None = None) -> None:
        epoch = epoch or self.now["epoch"]
        place = location(step, epoch)
        shard = bytes([step]) * (BLOCK + 1)
        files = [{"name": "__0_0.distcp", "size": len(shard), "blocks": [crc32c(shard[:BLOCK]), crc32c(shard[BLOCK:])]}]
        files += [{"name": ".metadata", "size": 1, "blocks": [crc32c(b"m")]}]
        manifest = json.dumps({"files": files}).encode()
        stored = {"__0_0.distcp": shard, ".metadata": b"m", "manifest.json": manifest}
        for name, body in stored.items():
            self.bodies[f"{place}/{name}"] = body
            self.keys[f"{place}/{name}"] = Key([name], self.at(self.now["generation"]), None, "1")
        entry = {"seq": self.now["sequence"] + 1, "step": step, "epoch": epoch, "attempt": self.now["attempt"]}
        entry |= {"location": place, "digest": hashlib.sha256(manifest).hexdigest(), "state": "live"}
        entry |= {"score": None, "pinned": False}
        self.swap(sequence=entry["seq"], checkpoints=[*self.now["checkpoints"], entry])

    def remove(self, step: int) -> None:
        gone = [entry for entry in self.now["checkpoints"] if entry["step"] == step]
        rest = [entry for entry in self.now["checkpoints"] if entry["step"] != step]
        intents = [{"location": entry["location"]} for entry in gone]
        self.swap(checkpoints=rest, removing=[*self.now["removing"], *intents])
        for key, life in self.keys.items():
            if key.startswith(gone[0]["location"]):
                life.latest, life.deleted = None, self.at(self.now["generation"])

    def history(self) -> History:
        versions = []
        for document in self.documents:
            body = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
            sealed = {**document, "checksum": hashlib.sha256(body).hexdigest()}
            versions.append(Version(sealed, self.at(document["generation"])))
        return History(versions, self.keys, self.bodies)


def line(step: int, loss: float | None = None, samples: tuple[int, int] | None = None) -> str:
    samples = samples or (8 * (step - 1), 8 * step)
    return json.dumps({"step": step, "loss_hex": (loss or 1.0 / step).hex(), "samples": list(samples)})


def pod(attempt: int, resumed: tuple[int, str] | None, lines: list[str], first: bool = True) -> Json:
    told = (f"{ROOT}/{resumed[1]}", str(resumed[0])) if resumed else ("", "")
    hello = (
        f"everstep: resumed step {resumed[0]} from {resumed[1]} in 1 s"
        if resumed
        else f"everstep: fresh start in {ROOT}"
    )
    environment = {
        "EVERSTEP_POLICY": json.dumps(POLICY),
        "EVERSTEP_RESUME_PATH": told[0],
        "EVERSTEP_RESUME_STEP": told[1],
    }
    spoken = [[float(attempt), text] for text in ([hello, *lines] if first else [])]
    return {"name": f"job-{attempt}-0", "attempt": attempt, "environment": environment, "lines": spoken}


def tale() -> tuple[Story, list[Json]]:
    """Two attempts: the first dies in step 17, the second resumes step 15 and ends at 25; steps 5 and 10 go."""
    story = Story()
    story.fence()
    story.claim()
    for step in (5, 10, 15):
        story.commit(step)
    story.remove(5)
    story.fence()
    story.claim()
    for step in (20, 25):
        story.commit(step)
    story.remove(10)
    one = pod(1, None, [line(step) for step in range(1, 18)])
    two = pod(2, (15, location(15, 2)), [line(step) for step in range(16, 26)])
    return story, [one, two]


REFERENCE = [pod(1, None, [line(step) for step in range(1, 26)])]


def test_a_good_history_has_no_violation() -> None:
    story, pods = tale()
    assert list(violations(story.history(), ROOT, pods, REFERENCE)) == []


def test_without_the_pods_only_the_policy_is_unknown() -> None:
    story, _ = tale()
    assert list(violations(story.history(), ROOT, [], None)) == []
    story.remove(25)
    assert len(list(violations(story.history(), ROOT, [], None))) == 1


Breach = Callable[[Story, list[Json]], object]


def lose_version(story: Story, pods: list[Json]) -> None:
    del story.documents[3]


def commit_of_a_zombie(story: Story, pods: list[Json]) -> None:
    story.commit(30, epoch=2)


def commit_below(story: Story, pods: list[Json]) -> None:
    story.commit(22)


def resume_an_older(story: Story, pods: list[Json]) -> None:
    for document in story.documents:
        if document["claim"] and document["claim"]["epoch"] == 4:
            document["claim"]["resumed"] = location(10, 2)


def told_an_older(story: Story, pods: list[Json]) -> None:
    pods[1]["environment"]["EVERSTEP_RESUME_STEP"] = "10"


def loaded_an_older(story: Story, pods: list[Json]) -> None:
    pods[1]["lines"][0][1] = f"everstep: resumed step 10 from {location(10, 2)} in 1 s"


def skip_a_step(story: Story, pods: list[Json]) -> None:
    del pods[1]["lines"][3]


def another_loss(story: Story, pods: list[Json]) -> None:
    pods[1]["lines"][4][1] = line(19, loss=0.25)


def repeat_samples(story: Story, pods: list[Json]) -> None:
    pods[1]["lines"][4][1] = line(19, samples=(136, 144))


def never_finish(story: Story, pods: list[Json]) -> None:
    del pods[1]["lines"][-1]


def remove_the_newest(story: Story, pods: list[Json]) -> None:
    story.remove(25)


def drop_without_intent(story: Story, pods: list[Json]) -> None:
    story.swap(checkpoints=[entry for entry in story.now["checkpoints"] if entry["step"] != 15])


def lose_a_shard(story: Story, pods: list[Json]) -> None:
    story.keys[f"{location(25, 4)}/__0_0.distcp"].latest = None


def damage_a_shard(story: Story, pods: list[Json]) -> None:
    story.bodies[f"{location(25, 4)}/__0_0.distcp"] = bytes(BLOCK + 1)


def store_a_shard_late(story: Story, pods: list[Json]) -> None:
    story.keys[f"{location(25, 4)}/__0_0.distcp"].created = story.at(99)


def delete_early(story: Story, pods: list[Json]) -> None:
    story.keys[f"{location(5, 2)}/__0_0.distcp"].deleted = story.at(4)


def write_twice(story: Story, pods: list[Json]) -> None:
    story.keys[f"{location(25, 4)}/__0_0.distcp"].etags = ["one", "other"]


def list_without_manifest(story: Story, pods: list[Json]) -> None:
    del story.bodies[f"{location(25, 4)}/manifest.json"]


def set_aside(story: Story, pods: list[Json]) -> None:
    entries = [{**entry, "state": "abandoned"} if entry["step"] == 15 else entry for entry in story.now["checkpoints"]]
    story.swap(checkpoints=entries)


BREACHES: list[tuple[Breach, str]] = [
    (lose_version, "generations are not"),
    (commit_of_a_zombie, "commits step 30 of epoch 2 under the claim of epoch 4"),
    (commit_below, "commits step 22 although step 25"),
    (resume_an_older, "the claim resumes"),
    (told_an_older, "was told to resume"),
    (loaded_an_older, "which no claim"),
    (skip_a_step, "then did step"),
    (another_loss, "where the uninterrupted run had"),
    (repeat_samples, "begins at sample 136"),
    (never_finish, "missing: [25]"),
    (remove_the_newest, "which stays: keepLast"),
    (drop_without_intent, "without an intent"),
    (lose_a_shard, "is gone, its entry is listed"),
    (damage_a_shard, "does not have the committed bytes"),
    (store_a_shard_late, "was not stored when its entry was committed"),
    (delete_early, "was deleted while its entry was listed"),
    (write_twice, "with different bytes"),
    (list_without_manifest, "without the manifest"),
    (set_aside, "was changed from"),
]


@pytest.mark.parametrize(("breach", "named"), BREACHES, ids=lambda value: getattr(value, "__name__", ""))
def test_each_breach_is_named(breach: Breach, named: str) -> None:
    story, pods = tale()
    breach(story, pods)
    found = list(violations(story.history(), ROOT, pods, REFERENCE))
    assert any(named in sentence for sentence in found), found


NEARBY = location(13, 2)


def with_a_local_tier(local: str | None = NEARBY) -> tuple[Story, list[Json]]:
    """One attempt whose worker group is started again in place: it dies in step 17, and has step 13 on its nodes."""
    story = Story()
    story.fence()
    story.claim()
    story.begin(None)
    story.commit(10)
    story.claim()
    story.begin(local)
    story.commit(20)
    story.commit(25)
    one = pod(1, None, [line(step) for step in range(1, 18)])
    said = f"everstep: resumed step 13 from {NEARBY} of the local tier in 0.01 s (saved by 2 ranks, now 2)"
    one["lines"] += [[2.0, said], *([2.0, line(step)] for step in range(14, 26))]
    return story, [one]


def test_a_local_save_may_be_resumed_where_the_register_tells_of_it() -> None:
    story, pods = with_a_local_tier()
    assert list(violations(story.history(), ROOT, pods, REFERENCE)) == []


@pytest.mark.parametrize(
    ("local", "named"),
    [
        (None, "which no claim"),
        (location(9, 2), "although step 10 is committed"),
        (location(13, 3), "which no group before epoch 3 can have saved"),
    ],
)
def test_a_local_save_that_may_not_be_resumed_is_named(local: str | None, named: str) -> None:
    story, pods = with_a_local_tier(local)
    found = list(violations(story.history(), ROOT, pods, REFERENCE))
    assert any(named in sentence for sentence in found), found


def test_nobody_begins_under_anothers_claim() -> None:
    story, pods = with_a_local_tier()
    story.swap(begun={"claim": "claim 2", "epoch": 2, "local": None})
    found = list(violations(story.history(), ROOT, pods, REFERENCE))
    assert any("begins under the claim" in sentence for sentence in found), found
