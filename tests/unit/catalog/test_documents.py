from __future__ import annotations

import json

import pytest

from everstep.catalog import documents
from everstep.catalog.documents import Catalog, Entry, decode, encode
from everstep.errors import CatalogUnreadableError
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
