from __future__ import annotations

import hashlib
import json

import pytest
from pydantic import ValidationError

from everstep.catalog import documents, manifest, transitions
from everstep.catalog.documents import Catalog, Entry, Hold, decode, encode
from everstep.errors import (
    CatalogUnreadableError,
    CheckpointCorruptError,
    CheckpointUnreadableError,
    InvalidOperationError,
)
from tests.unit.catalog.saves import NOW, OWNER

LOCATION = "checkpoints/step_000000000010-000002-0123456789ab"


def entry(**changes: object) -> Entry:
    values = {"seq": 1, "step": 10, "epoch": 2, "attempt": 1, "location": LOCATION, "digest": "d", "bytes": 5}
    return Entry.model_validate({**values, "committed": NOW, **changes})


def test_a_document_comes_back_as_it_went() -> None:
    catalog = Catalog(generation=3, swap="s", owner=OWNER, attempt=1, epoch=2, sequence=1, checkpoints=(entry(),))
    assert decode(encode(catalog)) == catalog


def test_fields_of_a_newer_version_survive_a_swap() -> None:
    raw = json.loads(encode(Catalog(checkpoints=(entry(),))))
    del raw["checksum"]
    raw["news"] = {"a": 1}
    raw["checkpoints"][0]["colour"] = "red"
    read = Catalog.model_validate(raw)
    again = json.loads(encode(read.model_copy(update={"attempt": 7})))
    assert again["news"] == {"a": 1}
    assert again["checkpoints"][0]["colour"] == "red"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"format": 2}', "format 2"),
        (b'{"format": 1}', "own checksum"),
        (b'{"format": 1, "news": NaN}', "not JSON"),
        (b'{"format": 1, "news": "\\ud800"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"x" * (documents.MAX_DOCUMENT_BYTES + 1), "more than"),
    ],
)
def test_what_is_no_document_is_refused_by_its_fault(body: bytes, message: str) -> None:
    with pytest.raises(CatalogUnreadableError, match=message):
        decode(body)


def test_an_edit_by_hand_is_noticed() -> None:
    body = encode(Catalog(checkpoints=(entry(),))).replace(b'"step":10', b'"step":11')
    with pytest.raises(CatalogUnreadableError, match="own checksum"):
        decode(body)


@pytest.mark.parametrize("location", ["../../other/checkpoints/x", "/etc/passwd", "checkpoints/step_1-1-a", ""])
def test_a_location_that_is_none_is_refused(location: str) -> None:
    with pytest.raises(ValueError, match="not a checkpoint location"):
        entry(location=location)


def forged(**changes: object) -> bytes:
    """What a tenant can write: any content with the right checksum."""
    content = {**json.loads(encode(Catalog())), **changes}
    del content["checksum"]
    content["checksum"] = hashlib.sha256(documents._canonical(content)).hexdigest()
    return documents._canonical(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attempt": 10**30}, "attempt"),
        ({"epoch": -1}, "epoch"),
        ({"holds": [{"location": LOCATION, "by": "x", "until": "2030-01-01T00:00:00"}]}, "timezone"),
        ({"removing": [{"location": "../x", "step": 1, "since": "2030-01-01T00:00:00Z"}]}, "not a checkpoint location"),
        ({"removing": [{"location": LOCATION.replace("10", "1\u0660"), "step": 1, "since": 0}]}, "not a checkpoint"),
        ({"checkpoints": [{}] * 5000}, "checkpoints"),
        ({"format": "x" * 100_000}, "format"),
    ],
)
def test_a_forged_document_is_refused_in_few_words(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CatalogUnreadableError, match=message) as caught:
        decode(forged(**changes))
    assert len(str(caught.value)) < 500


def test_nothing_is_written_that_could_not_be_read_back() -> None:
    holds = tuple(Hold(location=LOCATION, by=str(number), until=NOW) for number in range(documents.MAX_ENTRIES + 1))
    with pytest.raises(CatalogUnreadableError, match="holds"):
        encode(Catalog().model_copy(update={"holds": holds}))
    with pytest.raises(CatalogUnreadableError, match="epoch"):
        encode(Catalog().model_copy(update={"epoch": 10**9}))


def full() -> Catalog:
    """As many entries, each as large, as a register can have."""
    entries = tuple(
        entry(seq=number, step=number, location=f"checkpoints/step_{number:012}-000002-0123456789ab", reason="x" * 400)
        for number in range(documents.MAX_ENTRIES)
    )
    return Catalog(owner=OWNER, attempt=1, epoch=2, sequence=documents.MAX_ENTRIES, checkpoints=entries)


def test_a_full_register_takes_no_more_commits_but_can_be_fenced_claimed_and_pruned() -> None:
    catalog = full()
    body = encode(catalog)
    news = documents.MAX_DOCUMENT_BYTES - documents.RESERVE - len(body) - 10
    catalog = catalog.model_copy(update={"news": "x" * news})
    encode(catalog, documents.RESERVE)
    with pytest.raises(CatalogUnreadableError, match="everstep prune"):
        encode(catalog.model_copy(update={"news": "x" * (news + 100)}), documents.RESERVE)
    fenced = transitions.fence(catalog, OWNER, "f")
    claimed = transitions.claim(fenced, "c", NOW, 2, OWNER.uid)
    with pytest.raises(InvalidOperationError, match="everstep prune"):
        transitions.commit(
            claimed, "c", entry(step=10**6, location=f"checkpoints/step_{10**6:012}-000004-0123456789ab")
        )
    pruned = transitions.retire(claimed, {e.location for e in catalog.checkpoints[:-2]}, NOW)
    for document in (fenced, claimed, pruned, transitions.forget(pruned, {r.location for r in pruned.removing})):
        assert decode(encode(document)) == document
    assert len(pruned.checkpoints) == 2


def test_a_manifest_of_another_form_is_not_damaged() -> None:
    """A checkpoint that is damaged is set aside: one that a newer version wrote must not be."""
    body = b'{"format": 2}'
    with pytest.raises(CheckpointUnreadableError, match="intact, but not as this version writes it"):
        manifest.decode(body, manifest.digest(body))
    with pytest.raises(CheckpointCorruptError, match="SHA-256"):
        manifest.decode(body, manifest.digest(b"{}"))
    with pytest.raises(CheckpointCorruptError):
        manifest.decode(body)


def test_a_file_has_a_sum_for_each_of_its_blocks() -> None:
    """Bytes without a sum would be used unverified, and sums without bytes never be looked at."""
    size = manifest.BLOCK + 1
    assert manifest.File(name=".metadata", size=size, blocks=(1, 2)).blocks == (1, 2)
    for blocks in ((), (1,), (1, 2, 3)):
        with pytest.raises(ValidationError, match=f"{len(blocks)} sums for the {size} bytes of .metadata"):
            manifest.File(name=".metadata", size=size, blocks=blocks)
