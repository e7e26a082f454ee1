"""The rights that docs/storage.md names are enough for a job's whole life, and reach no other tenant's bucket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.s3 import S3Endpoint, S3Server
from everstep.catalog import JobCatalog, Retention, S3Access, open_store
from everstep.catalog.store import s3_objects
from everstep.catalog.store.probe import probe
from everstep.errors import StorageRefusedError
from tests.unit.catalog.saves import OWNER, save

PAGE = Path(__file__).parents[2] / "docs" / "storage.md"
LARGE = 2 << 20
"""Bytes of an object that is sent in parts."""


def documented() -> dict[str, object]:
    """SeaweedFS' configuration as the page has it."""
    _, _, text = PAGE.read_text(encoding="utf-8").partition("**SeaweedFS, run here.**")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    (identity,) = json.loads(" ".join(lines))["identities"]
    assert isinstance(identity, dict)
    return identity


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Endpoint]:
    """A server that knows the page's identity besides its administrator."""
    running = S3Server(tmp_path / "s3")
    try:
        running.start()
        running.stop()
        config = running.directory / "identities.json"
        content = json.loads(config.read_text())
        content["identities"].append({**documented(), "credentials": [{"accessKey": "team", "secretKey": "a"}]})
        config.write_text(json.dumps(content))
        yield running.start()
    finally:
        running.remove()


def test_the_documented_identity_is_enough_and_not_more(server: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_objects, "WHOLE", LARGE // 2)
    for bucket in ("training", "others"):
        server.make_bucket(bucket)
    access = S3Access(endpoint=server.url, region=server.region, access_key="team", secret_key="a")
    store = open_store("s3://training/teams/team-a/ns/job", access)
    probe(store)
    job = JobCatalog(store)
    job.fence(OWNER)
    claimed = job.claim(attempt=1, uid=OWNER.uid)
    for step in range(1, 5):
        save(claimed, step)
    save(claimed, 5, body=bytes(LARGE))
    job.retire(Retention(last=2))
    assert job.finish_removals() == 3
    job.sweep()
    assert [entry.step for entry in job.require().live()] == [4, 5]
    job.delete_everything(OWNER)
    assert list(store.list("")) == []
    with pytest.raises(StorageRefusedError, match="AccessDenied"):
        probe(open_store("s3://others/teams/team-a/ns/job", access))
