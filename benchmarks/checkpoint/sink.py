"""An S3 server that keeps nothing: what is left of a transfer's cost is the client's.

It takes whole objects and multipart uploads without looking at their bytes (Linux throws them away without a copy), and
answers ranges out of one buffer. A thread a connection. Told of no size, it keeps objects of up to 1 MiB, with
conditional writes, so that registers and metadata can be kept in it beside shards that are forgotten.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import socket
import threading
from urllib.parse import parse_qs, unquote, urlsplit

_BUFFER = 1 << 20
_THROWN = 64 << 20
"""Bytes that one call throws away: it takes memory of this size, and touches none of it."""
_EMPTY = {
    "list-type": b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
    "uploads": b"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>",
}
_ETAG = '"d41d8cd98f00b204e9800998ecf8427e"'


class Kept:
    """The small objects; of large ones and of those in parts, that they are there."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        return self._objects.get(key)

    def put(self, key: str, body: bytes, headers: dict[str, str]) -> tuple[str, str]:
        """Status and ETag."""
        with self._lock:
            there = self._objects.get(key)
            if headers.get("if-none-match") == "*" and key in self._objects:
                return "412 Precondition Failed", ""
            if "if-match" in headers and (there is None or headers["if-match"].strip('"') != _etag(there)):
                return ("404 Not Found" if there is None else "412 Precondition Failed"), ""
            self._objects[key] = body
        return "200 OK", f'"{_etag(body)}"'

    def drop(self, key: str) -> None:
        with self._lock:
            self._objects.pop(key, None)


def _etag(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


class Sink:
    """`size`: bytes that every object is said to have; 0: small ones are kept, and others are not there."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._content = memoryview(os.urandom(_BUFFER))
        self._kept = Kept()

    def serve(self, listener: socket.socket) -> None:
        while True:
            peer, _ = listener.accept()
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._talk, args=(peer,), daemon=True).start()

    def _talk(self, peer: socket.socket) -> None:
        buffer, nothing = memoryview(bytearray(_BUFFER)), memoryview(mmap.mmap(-1, _THROWN))
        rest = b""
        try:
            while True:
                while b"\r\n\r\n" not in rest:
                    count = peer.recv_into(buffer)
                    if not count:
                        return
                    rest += buffer[:count]
                head, _, rest = rest.partition(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                method, target, _ = lines[0].split(" ", 2)
                headers = {
                    name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
                }
                if headers.get("expect", "").lower() == "100-continue":
                    peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                left = int(headers.get("content-length", "0"))
                taken = min(left, len(rest))
                kept = bytearray(rest[:taken]) if not self._size and left <= _BUFFER else None
                left, rest = left - taken, rest[taken:]
                while left:
                    if kept is None:
                        count = peer.recv_into(nothing, min(left, _THROWN), socket.MSG_TRUNC | socket.MSG_WAITALL)
                    else:
                        count = peer.recv_into(buffer, min(left, _BUFFER))
                        kept += buffer[:count]
                    if not count:
                        return
                    left -= count
                if self._size:
                    self._answer(peer, method, target, headers)
                else:
                    self._keep(peer, method, target, headers, kept)
        except (ConnectionError, BrokenPipeError):
            return
        finally:
            peer.close()

    def _keep(
        self, peer: socket.socket, method: str, target: str, headers: dict[str, str], body: bytearray | None
    ) -> None:
        """As a store with a memory for small objects alone."""
        parts = urlsplit(target)
        key, query = unquote(parts.path), parse_qs(parts.query, keep_blank_values=True)
        if method == "POST" or "partNumber" in query:
            if "uploadId" in query and method == "POST":
                self._kept.put(key, b"", {})
            return self._answer(peer, method, target, headers)
        status, etag, found = "200 OK", _ETAG, b""
        if method == "PUT" and "x-amz-copy-source" in headers:
            source = unquote(headers["x-amz-copy-source"])
            _, etag = self._kept.put(key, self._kept.get(f"/{source.lstrip('/')}") or b"", {})
            found = f"<CopyObjectResult><ETag>{etag}</ETag></CopyObjectResult>".encode()
        elif method == "PUT":
            status, etag = self._kept.put(key, _unchunked(bytes(body or b""), headers), headers)
        elif method == "DELETE":
            self._kept.drop(key)
            status = "204 No Content"
        elif (listing := next((name for name in _EMPTY if name in query), None)) is not None:
            found = _EMPTY[listing]
        elif (there := self._kept.get(key)) is None:
            status = "404 Not Found"
            found = b"<Error><Code>NoSuchKey</Code></Error>"
        else:
            found, etag = there, f'"{_etag(there)}"'
            if "range" in headers:
                start, _, last = headers["range"].removeprefix("bytes=").partition("-")
                end = min(int(last or len(there) - 1), len(there) - 1)
                status = f"206 Partial Content\r\nContent-Range: bytes {start}-{end}/{len(there)}"
                found = there[int(start) : end + 1]
        if method == "PUT" and status.startswith("4"):
            found = f"<Error><Code>{status.partition(' ')[2].replace(' ', '')}</Code></Error>".encode()
        peer.sendall(
            f"HTTP/1.1 {status}\r\nContent-Length: {len(found)}\r\nETag: {etag}\r\nContent-Type: application/xml\r\n"
            f"Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n".encode()
            + (b"" if method == "HEAD" else found)
        )
        return None

    def _answer(self, peer: socket.socket, method: str, target: str, headers: dict[str, str]) -> None:
        query = parse_qs(urlsplit(target).query, keep_blank_values=True)
        body, more = b"", f"ETag: {_ETAG}\r\n"
        if method == "POST" and "uploads" in query:
            body = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
        elif method == "POST" and "uploadId" in query:
            body = f"<CompleteMultipartUploadResult><ETag>{_ETAG}</ETag></CompleteMultipartUploadResult>".encode()
        elif method == "GET" and "list-type" not in query:
            start, _, last = headers.get("range", f"bytes=0-{self._size - 1}").removeprefix("bytes=").partition("-")
            end = min(int(last or self._size - 1), self._size - 1)
            length = end - int(start) + 1
            peer.sendall(
                f"HTTP/1.1 206 Partial Content\r\nContent-Length: {length}\r\nETag: {_ETAG}\r\nAccept-Ranges: bytes\r\n"
                f"Content-Range: bytes {start}-{end}/{self._size}\r\n"
                "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n".encode()
            )
            for at in range(0, length, _BUFFER):
                peer.sendall(self._content[: min(_BUFFER, length - at)])
            return
        length = self._size if method == "HEAD" else len(body)
        more += "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: application/xml\r\n"
        peer.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{more}\r\n".encode() + body)


def _unchunked(body: bytes, headers: dict[str, str]) -> bytes:
    """What stands in a body of aws-chunked encoding."""
    if "aws-chunked" not in headers.get("content-encoding", ""):
        return body
    found, rest = b"", body
    while rest:
        line, _, rest = rest.partition(b"\r\n")
        count = int(line.split(b";")[0], 16)
        if not count:
            break
        found, rest = found + rest[:count], rest[count + 2 :]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256 << 20, help="0: keep small objects")
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        Sink(options.size).serve(listener)


if __name__ == "__main__":
    main()
