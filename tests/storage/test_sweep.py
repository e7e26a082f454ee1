"""What the next sweep leaves of unfinished uploads: none of an older epoch, all of a save under way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dev.s3 import S3Endpoint
from everstep.catalog import JobCatalog, Location, Owner, open_store
from tests.storage.conftest import access_of

OWNER = Owner(cluster="c1", namespace="ns", name="job", uid="u1")
Begin = Callable[[Location], None]
Unfinished = Callable[[], set[str]]


@pytest.fixture
def on_posix(tmp_path: Path) -> tuple[JobCatalog, Begin, Unfinished]:
    def begin(location: Location) -> None:
        (tmp_path / str(location)).mkdir(parents=True)
        (tmp_path / str(location) / ".partial-0123").write_bytes(b"half of it")

    return (
        JobCatalog(open_store(str(tmp_path))),
        begin,
        lambda: {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("*/.partial-*")},
    )


@pytest.fixture
def on_s3(s3_server: S3Endpoint) -> tuple[JobCatalog, Begin, Unfinished]:
    bucket, client = s3_server.make_bucket(), s3_server.client()

    def begin(location: Location) -> None:
        begun = client.create_multipart_upload(Bucket=bucket, Key=f"ns/job/{location.key('__0_0.distcp')}")
        client.upload_part(
            Bucket=bucket, Key=begun["Key"], UploadId=begun["UploadId"], PartNumber=1, Body=b"half of it"
        )

    def unfinished() -> set[str]:
        listed = client.list_multipart_uploads(Bucket=bucket, Prefix="ns/job/").get("Uploads", [])
        return {upload["Key"].removeprefix("ns/job/").rpartition("/")[0] for upload in listed}

    return JobCatalog(open_store(f"s3://{bucket}/ns/job", access_of(s3_server))), begin, unfinished


@pytest.mark.parametrize("place", ["on_posix", "on_s3"])
def test_of_older_epochs_nothing_stays_and_of_the_present_one_all(place: str, request: pytest.FixtureRequest) -> None:
    job, begin, unfinished = request.getfixturevalue(place)
    job.fence(OWNER)
    fenced = job.claim(1, "u1").new_location(7)
    begin(fenced)
    assert unfinished() == {str(fenced)}
    job.sweep()
    assert unfinished() == {str(fenced)}
    under_way = job.claim(1, "u1").new_location(8)
    begin(under_way)
    job.sweep()
    assert unfinished() == {str(under_way)}
