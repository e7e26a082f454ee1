"""Roots to train into, and the runs that others are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field

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


@pytest.fixture
def s3_root(s3_server: S3Endpoint) -> Root:
    bucket = s3_server.make_bucket()
    access = S3Access(s3_server.url, s3_server.region, s3_server.access_key, s3_server.secret_key)
    return Root(f"s3://{bucket}/jobs/ns/job", s3_server.environment(), access)


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


@pytest.fixture(scope="session")
def torn(tmp_path_factory: pytest.TempPathFactory) -> gang.Gang:
    """The tiny script, whose rank 0 dies between the manifest of step 4 and the swap that would commit it."""
    folder = tmp_path_factory.mktemp("torn")
    broken = gang.start(folder, [gang.TINY, "die-before-swap"], str(folder / "root"))
    assert broken.wait() == 137
    return broken
