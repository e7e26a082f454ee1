"""From a URI to a store: `s3://bucket/prefix`, `file:///path` or a plain path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from everstep.catalog.store.base import Store
from everstep.errors import InvalidOperationError


@dataclass(frozen=True, slots=True)
class S3Access:
    """How to reach object storage. What is None comes from boto3's own chain (environment, files, workload
    identity).
    """

    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = None
    session_token: str | None = None
    connect_timeout: float = 5.0
    read_timeout: float = 30.0
    attempts: int = 4
    """Tries of a request that is not a swap."""
    whose: str = "the credentials of its environment"
    """Whose credentials these are, for messages of a refusal."""


def open_store(uri: str, access: S3Access | None = None) -> Store:
    """Raises InvalidOperationError for a URI that no store understands."""
    scheme, mark, rest = uri.partition("://")
    if mark and scheme == "s3":
        from everstep.catalog.store.s3 import S3Store

        bucket, _, prefix = rest.partition("/")
        if not bucket:
            raise InvalidOperationError(f"{uri!r} names no bucket: expected s3://bucket/prefix")
        return S3Store(bucket, prefix.strip("/"), access or S3Access())
    from everstep.catalog.store.posix import PosixStore

    if mark and scheme == "file":
        return PosixStore(Path("/" + rest.lstrip("/")))
    if mark:
        raise InvalidOperationError(f"{uri!r}: no store for {scheme}://; use s3://bucket/prefix or a path")
    return PosixStore(Path(uri))
