"""From a URI to a store: `s3://bucket/prefix`, `file:///path` or a plain path."""

from __future__ import annotations

from pathlib import Path

from everstep.catalog.store.access import S3Access
from everstep.catalog.store.base import Store
from everstep.errors import InvalidOperationError


def open_store(uri: str, access: S3Access | None = None) -> Store:
    """Raises InvalidOperationError for a URI that no store understands."""
    scheme, mark, rest = uri.partition("://")
    if not uri:
        raise InvalidOperationError("the URI is empty: expected s3://bucket/prefix or a path")
    if not mark and uri.startswith(("s3:", "s3//")):
        raise InvalidOperationError(f"{uri!r} is neither s3://bucket/prefix nor a path")
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
    try:
        return PosixStore(Path(uri).expanduser())
    except RuntimeError as error:
        raise InvalidOperationError(f"{uri!r}: {error}") from error
