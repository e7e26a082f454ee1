"""Every store that a test of this tier runs on: a directory, and a bucket of a real S3 server."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from dev.s3 import S3Endpoint
from everstep.catalog import S3Access, Store, open_store


def access_of(server: S3Endpoint) -> S3Access:
    return S3Access(
        endpoint=server.url, region=server.region, access_key=server.access_key, secret_key=server.secret_key
    )


@pytest.fixture(params=["posix", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "posix":
        return open_store(str(tmp_path / "root"))
    server: S3Endpoint = request.getfixturevalue("s3_server")
    return open_store(f"s3://{server.make_bucket('conformance')}/{secrets.token_hex(4)}/ns/job", access_of(server))
