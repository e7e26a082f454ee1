"""One bucket and prefix as an access reaches it: names, tries, and what its errors mean.

A 404 is an absent key only where the store says so by its code: a proxy's 404 must not make a register look lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    InvalidRegionError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)

from everstep.catalog.store.access import S3Access
from everstep.catalog.store.base import KeyNotFound
from everstep.catalog.store.s3_clients import S3Clients
from everstep.catalog.store.tries import Tries
from everstep.errors import StorageError, StorageRefusedError, StorageUnavailableError

T = TypeVar("T")

_NEVER_SENT = (
    ParamValidationError,
    SSOError,
    TokenRetrievalError,
    InvalidRegionError,
    NoRegionError,
    ProfileNotFound,
)
"""What else is wrong on this side, and stays so: no request was made of it."""

_WAIT_AND_RETRY = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "RequestTimeout",
    "TooManyRequests",
    "BadDigest",  # other bytes arrived than were summed
    "XAmzContentChecksumMismatch",
    "IncompleteBody",
}


class Counter:
    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            self.value += 1


@dataclass(frozen=True)
class S3Bucket:
    name: str
    prefix: str
    access: S3Access
    clients: S3Clients
    retries: Counter = field(default_factory=Counter)
    """Requests that were sent again."""

    @property
    def uri(self) -> str:
        return f"s3://{self.name}/{self.prefix}".rstrip("/")

    def key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def relative(self, key: str) -> str:
        return key.removeprefix(f"{self.prefix}/") if self.prefix else key

    def call(self, what: str, call: Callable[[], T], missing: str | None = None, tries: Tries | None = None) -> T:
        """Raises KeyNotFound for an absent key where `missing` names it, StorageRefusedError, and when it was tried
        enough StorageUnavailableError.
        """
        tries = tries or self.tries()
        return tries.run(lambda: self._try(what, call, missing))

    def tries(self, patience: float = 0.0) -> Tries:
        return Tries(self.access.attempts, patience, self.retries.add)

    def _try(self, what: str, call: Callable[[], T], missing: str | None) -> T:
        try:
            return call()
        except ClientError as error:
            if missing is not None and is_missing_key(error):
                raise KeyNotFound(f"{self.uri}/{missing}") from error
            raise self.translate(what, error) from error
        except (BotoCoreError, HTTPClientError) as error:
            raise self.translate(what, error) from error

    @property
    def _where(self) -> str:
        return f"{self.uri} at {self.clients.control.meta.endpoint_url}"

    def no_etag(self, what: str) -> str:
        """What to say of an answer that no S3 server would give."""
        return f"{self._where}: {what}: an answer without an ETag: is this an S3 endpoint?"

    def translate(self, what: str, error: Exception) -> StorageError:
        where = self._where
        if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
            return StorageRefusedError(f"{where}: {what}: no credentials: AWS_ACCESS_KEY_ID is not set")
        if not isinstance(error, ClientError):
            kind = StorageRefusedError if isinstance(error, _NEVER_SENT) else StorageUnavailableError
            return kind(f"{where}: {what}: {' '.join(str(error).split())}")
        code, status = code_of(error), status_of(error)
        if code == "NoSuchBucket":
            return StorageRefusedError(
                f"{where}: the bucket {self.name!r} does not exist: create it, or correct the URI"
            )
        if status >= 500 or status == 429 or code in _WAIT_AND_RETRY:
            return StorageUnavailableError(f"{where}: {what}: {code}")
        if status == 404 and code == "404":
            return StorageUnavailableError(f"{where}: {what}: 404 without an S3 error code: is this an S3 endpoint?")
        message = error.response.get("Error", {}).get("Message", "")
        if status in (401, 403):
            what += f" with {self.access.whose}"
        return StorageRefusedError(f"{where}: {what}: {code}: {message}".rstrip(": "))


def status_of(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "") or status_of(error))


def is_absent(error: ClientError) -> bool:
    return status_of(error) == 404 and code_of(error) != "NoSuchBucket"


def is_missing_key(error: ClientError) -> bool:
    return code_of(error) == "NoSuchKey"
