"""Real servers for tests: an S3 server, an API server without nodes, a whole cluster. None starts unless asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dev.s3 import S3Endpoint, S3Server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Endpoint]:
    """A real S3 server on loopback: `.url`, `.access_key`, `.secret_key`, `.region`, `.client()`, `.make_bucket()`."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture
def s3_bucket(s3_server: S3Endpoint) -> str:
    """The name of a fresh bucket. Its objects go with the server."""
    return s3_server.make_bucket()
