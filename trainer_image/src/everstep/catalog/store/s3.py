"""S3-compatible object storage through boto3. A register's token is its ETag; a swap is a conditional PUT, never
retried.

Tries are ours, not botocore's: it draws its pauses from Python's global generator, and a training script's random
numbers must not depend on how often storage hiccuped.

409 (a racing conditional write) and 404 on a swap are answers that do not say what happened to an earlier copy of
the same request, so both count as refused and are read after; time-outs, resets and 5xx count as unanswered. A 404 on
a read is an absent key only where the store says so by its code: a proxy's 404 must not make a register look lost.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from everstep.catalog.store.access import S3Access
from everstep.catalog.store.base import (
    UNCHANGED,
    KeyNotFound,
    ObjectInfo,
    SwapRefused,
    SwapUnanswered,
    Unchanged,
    Versioned,
)
from everstep.errors import InvalidOperationError, StorageError, StorageRefusedError, StorageUnavailableError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

MAX_REGISTER_BYTES = 8 << 20
"""Nothing that is read as a register is larger: a tenant can put anything at its key."""
_DELETE_BATCH = 1000
_LONGEST_PAUSE = 20.0
_jitter = random.Random()
_WAIT_AND_RETRY = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "RequestTimeout",
    "TooManyRequests",
}


class S3Store:
    def __init__(self, bucket: str, prefix: str, access: S3Access) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self._access = access
        self._client = _client(access, os.getpid())

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    # registers

    def read_register(self, key: str, known: str | None = None) -> Versioned | Unchanged | None:
        condition: dict[str, Any] = {} if known is None else {"IfNoneMatch": known}

        def read() -> Versioned | Unchanged | None:
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=self._key(key), **condition)
            except ClientError as error:
                if _status(error) == 304:
                    return UNCHANGED
                if _is_missing_key(error):
                    return None
                raise
            with answer["Body"] as stream:
                if answer["ContentLength"] > MAX_REGISTER_BYTES:
                    raise InvalidOperationError(f"{self.uri}/{key} has {answer['ContentLength']} bytes: not a register")
                return Versioned(stream.read(), answer["ETag"])

        return self._call(f"read {key}", read)

    def swap_register(self, key: str, body: bytes, token: str | None) -> str:
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if token is None else {"IfMatch": token}
        try:
            answer = self._client.put_object(
                Bucket=self.bucket, Key=self._key(key), Body=body, ContentType="application/json", **condition
            )
        except ClientError as error:
            if _status(error) in (409, 412) or _is_absent(error):
                raise SwapRefused(_code(error)) from error
            translated = self._translate(f"swap {key}", error)
            if isinstance(translated, StorageUnavailableError):
                raise SwapUnanswered(str(translated)) from error
            raise translated from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise self._translate(f"swap {key}", error) from error
        except (BotoCoreError, HTTPClientError) as error:
            raise SwapUnanswered(str(error)) from error
        return answer["ETag"]

    # objects

    def get(self, key: str, limit: int | None = None) -> bytes:
        def read() -> bytes:
            answer = self._client.get_object(Bucket=self.bucket, Key=self._key(key))
            with answer["Body"] as stream:
                if limit is not None and answer["ContentLength"] > limit:
                    raise InvalidOperationError(
                        f"{self.uri}/{key} has {answer['ContentLength']} bytes, more than {limit}"
                    )
                return stream.read()

        return self._call(f"read {key}", read, missing=key)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        if length <= 0:
            return b""

        def read() -> bytes:
            span = f"bytes={start}-{start + length - 1}"
            try:
                with self._client.get_object(Bucket=self.bucket, Key=self._key(key), Range=span)["Body"] as stream:
                    return stream.read()
            except ClientError as error:
                if _status(error) == 416:
                    return b""
                raise

        return self._call(f"read {key}", read, missing=key)

    def read_into(self, key: str, start: int, into: memoryview) -> int:
        view = into.cast("B")
        body = self.get_range(key, start, len(view))
        view[: len(body)] = body
        return len(body)

    def put(self, key: str, body: bytes | bytearray | memoryview, sums: Sequence[int] = ()) -> int:
        content = body if isinstance(body, bytes) else bytes(body)
        self._call(
            f"write {key}", lambda: self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=content)
        )
        return 0

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for page in self._pages("list_objects_v2", prefix):
            for item in page.get("Contents", []):
                yield ObjectInfo(self._relative(item["Key"]), item["Size"], item["LastModified"])

    def list_folders(self, prefix: str) -> Iterator[str]:
        for page in self._pages("list_objects_v2", prefix, Delimiter="/"):
            for item in page.get("CommonPrefixes", []):
                yield self._relative(item["Prefix"]).rstrip("/")

    def _pages(self, operation: Any, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        """Each page is a request of its own, translated and retried as such."""
        request: Callable[..., dict[str, Any]] = getattr(self._client, operation)
        options |= {"Bucket": self.bucket, "Prefix": self._key(prefix)}
        while True:
            page = self._call(f"list {prefix}", lambda: request(**options))
            yield page
            if not page.get("IsTruncated"):
                return
            for marker in ("ContinuationToken", "KeyMarker", "UploadIdMarker"):
                if f"Next{marker}" in page:
                    options[marker] = page[f"Next{marker}"]

    def delete(self, keys: Iterable[str]) -> None:
        names = [self._key(key) for key in keys]
        for start in range(0, len(names), _DELETE_BATCH):
            self._delete_batch(names[start : start + _DELETE_BATCH])

    def _delete_batch(self, names: Sequence[str]) -> None:
        objects: Sequence[Any] = [{"Key": name} for name in names]
        answer = self._call(
            f"delete {len(names)} objects",
            lambda: self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True}),
        )
        failed = [error for error in answer.get("Errors", []) if error.get("Code") != "NoSuchKey"]
        if failed:
            first = failed[0]
            kind = StorageRefusedError if first.get("Code") == "AccessDenied" else StorageUnavailableError
            raise kind(
                f"{self.uri}: could not delete {first.get('Key')} and {len(failed) - 1} more: {first.get('Message')}"
            )

    def abort_uploads(self, prefix: str, older_than: datetime) -> int:
        count = 0
        for page in self._pages("list_multipart_uploads", prefix):
            for upload in page.get("Uploads", []):
                if upload["Initiated"] < older_than:
                    self._abort(upload["Key"], upload["UploadId"])
                    count += 1
        return count

    def _abort(self, key: str, upload: str) -> None:
        def abort() -> None:
            try:
                self._client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)
            except ClientError as error:
                if not _is_absent(error):  # completed or aborted meanwhile
                    raise

        self._call(f"abort the upload of {key}", abort)

    # helpers

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _relative(self, key: str) -> str:
        return key.removeprefix(f"{self.prefix}/") if self.prefix else key

    def _call(self, what: str, call: Callable[[], T], missing: str | None = None) -> T:
        for turn in range(self._access.attempts - 1):
            try:
                return self._try(what, call, missing)
            except StorageUnavailableError:
                time.sleep(min(_LONGEST_PAUSE, 2.0**turn) * _jitter.random())
        return self._try(what, call, missing)

    def _try(self, what: str, call: Callable[[], T], missing: str | None) -> T:
        try:
            return call()
        except ClientError as error:
            if missing is not None and _is_missing_key(error):
                raise KeyNotFound(f"{self.uri}/{missing}") from error
            raise self._translate(what, error) from error
        except (BotoCoreError, HTTPClientError) as error:
            raise self._translate(what, error) from error

    def _translate(self, what: str, error: Exception) -> StorageError:
        where = f"{self.uri} at {self._client.meta.endpoint_url}"
        if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
            return StorageRefusedError(f"{where}: {what}: no credentials: AWS_ACCESS_KEY_ID is not set")
        if not isinstance(error, ClientError):
            return StorageUnavailableError(f"{where}: {what}: {error}")
        code, status = _code(error), _status(error)
        if code == "NoSuchBucket":
            return StorageRefusedError(
                f"{where}: the bucket {self.bucket!r} does not exist: create it, or correct the URI"
            )
        if status >= 500 or status == 429 or code in _WAIT_AND_RETRY:
            return StorageUnavailableError(f"{where}: {what}: {code}")
        if status == 404 and code == "404":
            return StorageUnavailableError(f"{where}: {what}: 404 without an S3 error code: is this an S3 endpoint?")
        message = error.response.get("Error", {}).get("Message", "")
        if status in (401, 403):
            what += f" with {self._access.whose}"
        return StorageRefusedError(f"{where}: {what}: {code}: {message}".rstrip(": "))


@lru_cache(maxsize=64)
def _client(access: S3Access, process: int) -> S3Client:
    """One for all stores of an access: a client costs 10 MB and 100 ms. `process`: a fork must not share sockets."""
    config = Config(
        connect_timeout=access.connect_timeout,
        read_timeout=access.read_timeout,
        retries={"total_max_attempts": 1, "mode": "standard"},
        s3={"addressing_style": "path" if access.endpoint else "auto"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=32,
    )
    session = boto3.session.Session(
        aws_access_key_id=access.access_key,
        aws_secret_access_key=access.secret_key,
        aws_session_token=access.session_token,
        region_name=access.region,
    )
    region = session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=access.endpoint, region_name=region, config=config)


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "") or _status(error))


def _is_absent(error: ClientError) -> bool:
    return _status(error) == 404 and _code(error) != "NoSuchBucket"


def _is_missing_key(error: ClientError) -> bool:
    return _code(error) == "NoSuchKey"
