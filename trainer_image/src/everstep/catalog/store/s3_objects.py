"""Bodies of objects on S3: one request where that is enough, parts in parallel where the object is large.

Nothing here copies a body: parts are views of the caller's memory, and of a range each thread fills its own piece.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from everstep.catalog.store.s3_bucket import S3Bucket, code_of, status_of
from everstep.catalog.store.tries import Tries
from everstep.catalog.store.wire import Body
from everstep.catalog.sums import BLOCK, block_sums, header, whole_sum
from everstep.errors import InvalidOperationError, StorageUnavailableError

PART = 32 << 20
"""Bytes of a part: a multiple of BLOCK, so that a part's checksum is made of whole blocks' sums."""
WHOLE = 128 << 20
"""Objects up to this size are one request: a third less work for a server than the same bytes in parts."""
MOST_PARTS = 10_000
PIECE = 32 << 20
"""Larger ranges are read in pieces of this size at the same time."""
_CRC = "ChecksumCRC32C"


class S3Objects:
    def __init__(self, bucket: S3Bucket) -> None:
        self._bucket = bucket

    def connect(self, count: int) -> None:
        data, bucket = self._bucket.clients.data, self._bucket
        if data.wire is not None:
            url = data.client.generate_presigned_url("head_bucket", {"Bucket": bucket.name})
            data.wire.connect(urlsplit(url).netloc, count)

    def put(self, key: str, body: memoryview, sums: Sequence[int]) -> int:
        """Returns the number of requests that were sent again."""
        if sums and len(sums) != -(-len(body) // BLOCK):
            raise InvalidOperationError(f"{key}: {len(sums)} sums for {len(body)} bytes")
        tries = self._tries()
        data = self._bucket.clients.data
        sums = (sums or block_sums(body)) if data.checksums else ()
        if len(body) <= WHOLE:
            options = _checksum(sums, 0, len(body))
            self._bucket.call(
                f"write {key}",
                lambda: data.client.put_object(
                    Bucket=self._bucket.name, Key=self._bucket.key(key), Body=_file(body), **options
                ),
                tries=tries,
            )
        else:
            _Upload(self._bucket, key, body, sums, tries).run()
        return tries.retries

    def read_into(self, key: str, start: int, into: memoryview) -> int:
        if len(into) <= PIECE or self._bucket.clients.data.wire is None:
            return self._read(key, start, into, self._tries())
        tries = self._tries()
        pieces = [into[at : at + PIECE] for at in range(0, len(into), PIECE)]
        pool = self._bucket.clients.parts
        filled = _all(
            [pool.submit(self._read, key, start + n * PIECE, piece, tries) for n, piece in enumerate(pieces)], tries
        )
        total = 0
        for count, piece in zip(filled, pieces, strict=True):
            total += count
            if count < len(piece):
                break
        return total

    def _read(self, key: str, start: int, into: memoryview, tries: Tries) -> int:
        data, bucket = self._bucket.clients.data, self._bucket

        def read() -> int:
            span = f"bytes={start}-{start + len(into) - 1}"
            try:
                if data.wire is None:
                    with data.client.get_object(Bucket=bucket.name, Key=bucket.key(key), Range=span)["Body"] as stream:
                        content = stream.read()
                    into[: len(content)] = content
                    return len(content)
                with data.wire.receiving(into) as reception:
                    answer = data.client.get_object(Bucket=bucket.name, Key=bucket.key(key), Range=span)
            except ClientError as error:
                if status_of(error) == 416:
                    return 0
                raise
            begins = answer.get("ContentRange", "bytes 0-").removeprefix("bytes ").partition("-")[0]
            if begins != str(start):
                raise StorageUnavailableError(f"{bucket.uri}/{key}: {span} was asked for, bytes from {begins} came")
            return reception.filled

        return bucket.call(f"read {key}", read, missing=key, tries=tries) if len(into) else 0

    def _tries(self) -> Tries:
        return self._bucket.tries(self._bucket.access.patience)


class _Upload:
    """One multipart upload, from its beginning to the whole object, or to its end without one."""

    def __init__(self, bucket: S3Bucket, key: str, body: memoryview, sums: Sequence[int], tries: Tries) -> None:
        self._bucket = bucket
        self._client = bucket.clients.data.client
        self._key = key
        self._body = body
        self._sums = sums
        self._tries = tries
        self._named: dict[str, Any] = {"Bucket": bucket.name, "Key": bucket.key(key)}

    def run(self) -> None:
        algorithm: dict[str, Any] = {"ChecksumAlgorithm": "CRC32C"} if self._sums else {}
        begun = self._call("begin", lambda: self._client.create_multipart_upload(**self._named, **algorithm))
        self._named["UploadId"] = begun["UploadId"]
        try:
            size = part_size(len(self._body))
            starts = range(0, len(self._body), size)
            pool = self._bucket.clients.parts
            parts = _all(
                [pool.submit(self._part, number, start, size) for number, start in enumerate(starts, 1)], self._tries
            )
            self._complete(parts)
        except BaseException:
            self._abort()
            raise

    def _part(self, number: int, start: int, size: int) -> dict[str, Any]:
        piece = self._body[start : start + size]
        options = _checksum(self._sums, start, len(piece))
        answer = self._call(
            f"part {number}",
            lambda: self._client.upload_part(**self._named, PartNumber=number, Body=_file(piece), **options),
        )
        return {"PartNumber": number, "ETag": answer["ETag"], **options}

    def _complete(self, parts: list[dict[str, Any]]) -> None:
        silent = False

        def complete() -> None:
            nonlocal silent
            try:
                self._client.complete_multipart_upload(**self._named, MultipartUpload={"Parts": parts})  # type: ignore[typeddict-item]
            except ClientError as error:
                if not (silent and code_of(error) == "NoSuchUpload" and self._stands()):
                    silent = silent or status_of(error) >= 500
                    raise
            except Exception:
                silent = True
                raise

        self._call("complete", complete)

    def _stands(self) -> bool:
        """An earlier request to complete it was carried out, and its answer was lost. Keys are never used again."""
        try:
            found = self._client.head_object(Bucket=self._named["Bucket"], Key=self._named["Key"])
        except ClientError:
            return False
        return found["ContentLength"] == len(self._body)

    def _abort(self) -> None:
        """As far as it goes: what stays is found by `abort_uploads`."""
        with contextlib.suppress(Exception):
            self._client.abort_multipart_upload(**self._named)

    def _call(self, what: str, call: Callable[[], Any]) -> Any:
        return self._bucket.call(f"write {self._key} ({what})", call, tries=self._tries)


def part_size(size: int) -> int:
    """The least multiple of PART, usually PART itself, that makes no more than MOST_PARTS parts."""
    return PART * -(-size // (PART * MOST_PARTS))


def _all(futures: list[Future[Any]], tries: Tries) -> list[Any]:
    """Their results in order. Whatever is raised, none of them looks at the caller's memory any more."""
    try:
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()
        return [future.result() for future in futures]
    except BaseException:
        tries.give_up()
        for future in futures:
            future.cancel()
        wait(futures)
        raise


def _checksum(sums: Sequence[int], start: int, length: int) -> dict[str, Any]:
    if not sums:
        return {}
    blocks = sums[start // BLOCK : -(-(start + length) // BLOCK)]
    return {_CRC: header(whole_sum(blocks, length))}


def _file(body: memoryview) -> Any:
    return Body(body)
