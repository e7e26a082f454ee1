"""Roots to train into, and the runs that others are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dev.s3 import S3Endpoint
from everstep.catalog import S3Access, Store, open_store

from . import gang


@dataclass(frozen=True)
class Root:
    uri: str
    environment: dict[str, str] = field(default_factory=dict)
    access: S3Access | None = None

    def store(self) -> Store:
        return open_store(self.uri, self.access)


@pytest.fixture(params=["posix", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    if request.param == "posix":
        return Root(str(tmp_path / "root"))
    server: S3Endpoint = request.getfixturevalue("s3_server")
    bucket = server.make_bucket()
    environment = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_REGION": server.region,
        "AWS_DEFAULT_REGION": server.region,
    }
    access = S3Access(server.url, server.region, server.access_key, server.secret_key)
    return Root(f"s3://{bucket}/jobs/ns/job", environment, access)


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> gang.Gang:
    """The recipe, 30 steps on 2 ranks, never interrupted. Its root is `folder / "root"`."""
    folder = tmp_path_factory.mktemp("straight")
    return gang.run(folder, gang.RECIPE, str(folder / "root"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> gang.Gang:
    """The tiny script, 8 steps on 2 ranks, never interrupted."""
    folder = tmp_path_factory.mktemp("tiny")
    return gang.run(folder, [gang.TINY, "plain"], str(folder / "root"))
