"""S3-compatible object storage. A register's token is its ETag; a swap is a conditional PUT through boto3, never
retried.

409 (a racing conditional write) and 404 on a swap are answers that do not say what happened to an earlier copy of
the same request, so both count as refused and are read after; time-outs, resets and 5xx count as unanswered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
)

from everstep.catalog.store.access import S3Access
from everstep.catalog.store.base import (
    UNCHANGED,
    ObjectInfo,
    SwapRefused,
    SwapUnanswered,
    Unchanged,
    Versioned,
    never,
)
from everstep.catalog.store.s3_bucket import S3Bucket, code_of, is_absent, is_missing_key, status_of
from everstep.catalog.store.s3_clients import clients_for
from everstep.catalog.store.s3_objects import S3Objects
from everstep.errors import InvalidOperationError, StorageRefusedError, StorageUnavailableError

MAX_REGISTER_BYTES = 8 << 20
"""Nothing that is read as a register is larger: a tenant can put anything at its key."""
_DELETE_BATCH = 1000


class S3Store:
    def __init__(self, bucket: str, prefix: str, access: S3Access) -> None:
        self._bucket = S3Bucket(bucket, prefix, access, clients_for(access))
        self._client = self._bucket.clients.control
        self._objects = S3Objects(self._bucket)

    @property
    def uri(self) -> str:
        return self._bucket.uri

    @property
    def retries(self) -> int:
        return self._bucket.retries.value

    def _named(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket.name, "Key": self._bucket.key(key)}

    # registers

    def read_register(self, key: str, known: str | None = None) -> Versioned | Unchanged | None:
        condition: dict[str, Any] = {} if known is None else {"IfNoneMatch": known}

        def read() -> Versioned | Unchanged | None:
            try:
                answer = self._client.get_object(**self._named(key), **condition)
            except ClientError as error:
                if status_of(error) == 304:
                    return UNCHANGED
                if is_missing_key(error):
                    return None
                raise
            with answer["Body"] as stream:
                if answer["ContentLength"] > MAX_REGISTER_BYTES:
                    raise InvalidOperationError(f"{self.uri}/{key} has {answer['ContentLength']} bytes: not a register")
                if not answer.get("ETag"):
                    raise StorageUnavailableError(self._bucket.no_etag(f"read {key}"))
                return Versioned(stream.read(), answer["ETag"])

        return self._bucket.call(f"read {key}", read)

    def swap_register(self, key: str, body: bytes, token: str | None) -> str:
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if token is None else {"IfMatch": token}
        try:
            answer = self._client.put_object(
                Bucket=self._bucket.name,
                Key=self._bucket.key(key),
                Body=body,
                ContentType="application/json",
                **condition,
            )
        except (ClientError, BotoCoreError, HTTPClientError) as error:
            if isinstance(error, ClientError) and (status_of(error) in (409, 412) or is_absent(error)):
                raise SwapRefused(code_of(error)) from error
            translated = self._bucket.translate(f"swap {key}", error)
            if isinstance(translated, StorageUnavailableError):
                raise SwapUnanswered(str(translated)) from error
            raise translated from error
        if not answer.get("ETag"):
            raise SwapUnanswered(self._bucket.no_etag(f"swap {key}"))
        return answer["ETag"]

    # objects

    def connect(self, count: int) -> None:
        """Have so many connections for bodies ready before they are asked for: each costs two round trips, with TLS
        twice as many. Raises what botocore and the connections raise."""
        self._objects.connect(count)

    def get(self, key: str, limit: int | None = None) -> bytes:
        def read() -> bytes:
            answer = self._client.get_object(**self._named(key))
            with answer["Body"] as stream:
                if limit is not None and answer["ContentLength"] > limit:
                    raise InvalidOperationError(
                        f"{self.uri}/{key} has {answer['ContentLength']} bytes, more than {limit}"
                    )
                return stream.read()

        return self._bucket.call(f"read {key}", read, missing=key)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        memory = memoryview(bytearray(max(length, 0)))
        return bytes(memory[: self._objects.read_into(key, start, memory)])

    def read_into(self, key: str, start: int, into: memoryview) -> int:
        return self._objects.read_into(key, start, into.cast("B"))

    def put(self, key: str, body: bytes | bytearray | memoryview, sums: Sequence[int] = ()) -> int:
        return self._objects.put(key, memoryview(body).cast("B"), sums)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for page in self._pages("list_objects_v2", prefix):
            for item in page.get("Contents", []):
                yield ObjectInfo(self._bucket.relative(item["Key"]), item["Size"], item["LastModified"])

    def list_folders(self, prefix: str) -> Iterator[str]:
        for page in self._pages("list_objects_v2", prefix, Delimiter="/"):
            for item in page.get("CommonPrefixes", []):
                yield self._bucket.relative(item["Prefix"]).rstrip("/")

    def _pages(self, operation: Any, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        """Each page is a request of its own, translated and retried as such."""
        request: Callable[..., dict[str, Any]] = getattr(self._client, operation)
        options |= {"Bucket": self._bucket.name, "Prefix": self._bucket.key(prefix)}
        while True:
            page = self._bucket.call(f"list {prefix}".rstrip(), lambda: request(**options))
            yield page
            if not page.get("IsTruncated"):
                return
            for marker in ("ContinuationToken", "KeyMarker", "UploadIdMarker"):
                if f"Next{marker}" in page:
                    options[marker] = page[f"Next{marker}"]

    def delete(self, keys: Iterable[str]) -> None:
        names = [self._bucket.key(key) for key in keys]
        for start in range(0, len(names), _DELETE_BATCH):
            self._delete_batch(names[start : start + _DELETE_BATCH])

    def _delete_batch(self, names: Sequence[str]) -> None:
        objects: Sequence[Any] = [{"Key": name} for name in names]
        answer = self._bucket.call(
            f"delete {len(names)} objects",
            lambda: self._client.delete_objects(Bucket=self._bucket.name, Delete={"Objects": objects, "Quiet": True}),
        )
        failed = [error for error in answer.get("Errors", []) if error.get("Code") != "NoSuchKey"]
        if failed:
            first = failed[0]
            kind = StorageRefusedError if first.get("Code") == "AccessDenied" else StorageUnavailableError
            raise kind(
                f"{self.uri}: could not delete {first.get('Key')} and {len(failed) - 1} more: {first.get('Message')}"
            )

    def abort_uploads(self, prefix: str, older_than: datetime, dead: Callable[[str], bool] = never) -> int:
        count = 0
        for page in self._pages("list_multipart_uploads", prefix):
            for upload in page.get("Uploads", []):
                if upload["Initiated"] < older_than or dead(self._bucket.relative(upload["Key"])):
                    self._abort(upload["Key"], upload["UploadId"])
                    count += 1
        return count

    def _abort(self, key: str, upload: str) -> None:
        def abort() -> None:
            try:
                self._client.abort_multipart_upload(Bucket=self._bucket.name, Key=key, UploadId=upload)
            except ClientError as error:
                if not is_absent(error):  # completed or aborted meanwhile
                    raise

        self._bucket.call(f"abort the upload of {key}", abort)
