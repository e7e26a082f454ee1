"""The contract's rules, written down a second time and independently: from what was stored to a list of violations.

Nothing here imports the product. A rule yields sentences; no sentence, no violation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from awscrt.checksums import crc32c

from tests.faults.history import History, Json, Version

SECOND = timedelta(seconds=1)
"""What stores round their times to."""
BLOCK = 256 << 10


def live(document: Json) -> list[Json]:
    found = [entry for entry in document["checkpoints"] if entry["state"] == "live"]
    return sorted(found, key=lambda entry: int(entry["seq"]))


def newest(document: Json) -> Json | None:
    return live(document)[-1] if live(document) else None


def generations(history: History) -> Iterator[str]:
    """One unbroken chain, no number, epoch or attempt falls back, each document is whole."""
    documents = [version.document for version in history.versions]
    if not documents:
        yield "no version of catalog.json was ever stored"
    numbers = [document["generation"] for document in documents]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"generations are not 1 to {len(numbers)}, once each: {numbers}"
    swaps = [document["swap"] for document in documents]
    if len(set(swaps)) != len(swaps):
        yield "two versions have the same swap id"
    for document in documents:
        content = {key: value for key, value in document.items() if key != "checksum"}
        body = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        if hashlib.sha256(body).hexdigest() != document["checksum"]:
            yield f"generation {document['generation']} does not match its checksum"
    for before, after in pairwise(history.versions):
        for name in ("epoch", "attempt", "sequence"):
            if after.document[name] < before.document[name]:
                yield f"generation {after.document['generation']}: {name} falls to {after.document[name]}"
        if after.at < before.at - SECOND:
            yield f"generation {after.document['generation']} was stored before the one that it follows"


def transitions(history: History, policy: Json | None) -> Iterator[str]:
    """Each version differs from the one before by exactly one of the contract's changes, made by its rules."""
    empty: Json = {"attempt": 0, "epoch": 0, "sequence": 0, "claim": None, "fence": None}
    empty |= {"checkpoints": [], "removing": [], "holds": []}
    before = empty
    for version in history.versions:
        after = version.document
        for sentence in _transition(before, after, policy, version.at):
            yield f"generation {after['generation']}: {sentence}"
        before = after


def _transition(before: Json, after: Json, policy: Json | None, at: datetime) -> Iterator[str]:
    old = {entry["location"]: entry for entry in before["checkpoints"]}
    new = {entry["location"]: entry for entry in after["checkpoints"]}
    came, left = sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
    for location in sorted(old.keys() & new.keys()):
        if new[location] != old[location]:
            yield f"{location} was changed from {old[location]} to {new[location]}"
    fenced = after["fence"] != before["fence"]
    claimed = not fenced and after["claim"] != before["claim"]
    began = after.get("begun") is not None and after.get("begun") != before.get("begun")
    kinds = [fenced, claimed, began, bool(came), bool(left) or len(after["removing"]) < len(before["removing"])]
    if sum(kinds) > 1:
        yield f"does several things at once (fence, claim, begin, commit, removal): {kinds}"
    if fenced:
        yield from _fence(before, after)
    elif claimed:
        yield from _claim(before, after)
    elif began:
        yield from _begin(before, after)
    elif (after["epoch"], after["attempt"]) != (before["epoch"], before["attempt"]):
        yield "epoch or attempt changes without a fence or a claim"
    if len(came) > 1:
        yield f"commits several at once: {came}"
    for location in came:
        yield from _commit(before, after, new[location])
    if left:
        yield from _removal(before, after, left, policy, at)


def _fence(before: Json, after: Json) -> Iterator[str]:
    if after["attempt"] <= before["attempt"] or after["epoch"] != before["epoch"] + 1 or after["claim"] is not None:
        yield f"fences attempt {after['attempt']}, epoch {after['epoch']} after {before['attempt']}, {before['epoch']}"


def _claim(before: Json, after: Json) -> Iterator[str]:
    claim = after["claim"]
    if claim is None:
        yield "takes the claim away without a fence"
        return
    if after["epoch"] != before["epoch"] + 1 or claim["epoch"] != after["epoch"]:
        yield f"claims epoch {claim['epoch']} after {before['epoch']}"
    if not claim["attempt"] == after["attempt"] == before["attempt"]:
        yield f"claims for attempt {claim['attempt']} while {after['attempt']} is in force"
    latest = newest(after)
    if claim["resumed"] != (latest["location"] if latest else None):
        yield f"the claim resumes {claim['resumed']}, the newest live entry is {latest}"


def _begin(before: Json, after: Json) -> Iterator[str]:
    """The claim's holder tells where it begins: from an earlier group's local save, no older than what is committed."""
    begun, claim, latest = after["begun"], after["claim"], newest(before)
    if claim != before["claim"] or claim is None or (begun["claim"], begun["epoch"]) != (claim["id"], claim["epoch"]):
        yield f"{begun} begins under the claim {claim}"
        return
    if begun["local"] is None:
        return
    step, epoch = (int(part) for part in begun["local"].removeprefix("checkpoints/step_").split("-")[:2])
    if epoch >= claim["epoch"]:
        yield f"begins from {begun['local']}, which no group before epoch {claim['epoch']} can have saved"
    if latest is not None and step < latest["step"]:
        yield f"begins from {begun['local']} although step {latest['step']} is committed"


def _commit(before: Json, after: Json, entry: Json) -> Iterator[str]:
    claim, latest = before["claim"], newest(before)
    if claim is None or after["claim"] != claim:
        yield f"commits step {entry['step']} without a claim that stays in force"
    elif (entry["epoch"], entry["attempt"]) != (claim["epoch"], claim["attempt"]):
        yield f"commits step {entry['step']} of epoch {entry['epoch']} under the claim of epoch {claim['epoch']}"
    if entry["state"] != "live" or entry["seq"] != before["sequence"] + 1 or after["sequence"] != entry["seq"]:
        yield f"commits step {entry['step']} as {entry['state']} with seq {entry['seq']} after {before['sequence']}"
    if latest is not None and entry["step"] <= latest["step"]:
        yield f"commits step {entry['step']} although step {latest['step']} is committed"


def _removal(before: Json, after: Json, left: list[str], policy: Json | None, at: datetime) -> Iterator[str]:
    intended = {intent["location"] for intent in after["removing"]}
    stay = keepers(before, policy, at)
    for location in left:
        if location not in intended:
            yield f"drops {location} without an intent to remove it"
        if location in stay:
            yield f"removes {location}, which stays: {stay[location]}"


def keepers(document: Json, policy: Json | None, at: datetime) -> dict[str, str]:
    """Location to why it must not be removed. Of an unknown policy (None), only what is safe whatever it says."""
    entries = live(document)
    stay = {entry["location"]: "one of the two newest" for entry in entries[-2:]}
    claim = document["claim"]
    if claim and claim["resumed"] and sum(entry["epoch"] == claim["epoch"] for entry in entries) < 2:
        stay[claim["resumed"]] = "resumed from"
    if policy is not None:
        stay |= _kept_by(policy, entries)
    stay |= {entry["location"]: "pinned" for entry in document["checkpoints"] if entry["pinned"]}
    for hold in document["holds"]:
        if datetime.fromisoformat(hold["until"]) > at:
            stay[hold["location"]] = f"held by {hold['by']}"
    return stay


def _kept_by(policy: Json, entries: list[Json]) -> dict[str, str]:
    """The union of keepLast, keepEvery and keepBest; everything where there is none of them."""
    stay: dict[str, str] = {}
    if policy.get("keepLast"):
        stay |= {entry["location"]: "keepLast" for entry in entries[-policy["keepLast"] :]}
    if policy.get("keepEvery"):
        stay |= {entry["location"]: "keepEvery" for entry in entries if entry["step"] % policy["keepEvery"] == 0}
    if policy.get("keepBest"):
        sign = 1 if policy["keepBest"].get("mode", "min") == "min" else -1
        scored = [entry for entry in entries if entry["score"] is not None]
        scored.sort(key=lambda entry: (sign * entry["score"], -entry["seq"]))
        stay |= {entry["location"]: "keepBest" for entry in scored[: policy["keepBest"].get("count", 1)]}
    if not any(policy.get(name) for name in ("keepLast", "keepEvery", "keepBest")):
        stay |= {entry["location"]: "no policy" for entry in entries}
    return stay


def objects(history: History) -> Iterator[str]:
    """What is listed was wholly stored before it was listed, and stays so for as long as it is listed."""
    listed = _listed(history.versions)
    for location, (entry, since, until) in listed.items():
        body = history.bodies.get(f"{location}/manifest.json")
        if body is None or hashlib.sha256(body).hexdigest() != entry["digest"]:
            yield f"{location} was committed without the manifest that its entry names"
            continue
        manifest = json.loads(body)
        names = ["manifest.json", *(file["name"] for file in manifest["files"])]
        if not any(name.endswith(".distcp") for name in names) or ".metadata" not in names:
            yield f"{location} was committed without shards or .metadata: {names}"
        for name in names:
            life = history.keys.get(f"{location}/{name}")
            if life is None or life.created is None or life.created > since + SECOND:
                yield f"{location}/{name} was not stored when its entry was committed"
            elif until is None and life.latest is None:
                yield f"{location}/{name} is gone, its entry is listed"
            elif life.deleted is not None and (until is None or life.deleted < until - SECOND):
                yield f"{location}/{name} was deleted while its entry was listed"
        if until is None:
            yield from _bytes(history, location, manifest)
    for key, life in history.keys.items():
        if key.startswith("checkpoints/") and len(set(life.etags)) > 1:
            yield f"{key} was written {len(life.etags)} times with different bytes"


def _listed(versions: list[Version]) -> dict[str, tuple[Json, datetime, datetime | None]]:
    """Location to its entry, since when it was listed, and until when (None: it still is)."""
    found: dict[str, tuple[Json, datetime, datetime | None]] = {}
    for version in versions:
        present = {entry["location"]: entry for entry in version.document["checkpoints"]}
        for location, entry in present.items():
            found.setdefault(location, (entry, version.at, None))
        for location, (entry, since, until) in found.items():
            if until is None and location not in present:
                found[location] = (entry, since, version.at)
    return found


def _bytes(history: History, location: str, manifest: Json) -> Iterator[str]:
    for file in manifest["files"]:
        body = history.bodies.get(f"{location}/{file['name']}", b"")
        blocks = [crc32c(body[start : start + BLOCK]) for start in range(0, len(body), BLOCK)]
        if len(body) != file["size"] or blocks != file["blocks"]:
            yield f"{location}/{file['name']} does not have the committed bytes"


def fence_points(history: History, root: str, pods: list[Json]) -> Iterator[str]:
    """EVERSTEP_RESUME_* of each pod is the newest live entry of the very version that fenced its attempt."""
    for pod in pods:
        fence = next((v.document for v in history.versions if v.document["attempt"] == pod["attempt"]), None)
        if fence is None:
            yield f"{pod['name']} ran although attempt {pod['attempt']} was never fenced"
            continue
        entry = newest(fence)
        expected = (f"{root}/{entry['location']}", str(entry["step"])) if entry else ("", "")
        told: Any = tuple(pod["environment"].get(f"EVERSTEP_RESUME_{name}", "") for name in ("PATH", "STEP"))
        if told != expected:
            yield f"{pod['name']} was told to resume {told}, generation {fence['generation']} says {expected}"
