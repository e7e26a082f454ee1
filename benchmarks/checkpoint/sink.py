"""An S3 server that keeps nothing: what is left of a transfer's cost is the client's.

It takes whole objects and multipart uploads without looking at their bytes, and answers ranges out of one buffer. A
thread a connection; all of its time goes into the kernel's copies.
"""

from __future__ import annotations

import argparse
import os
import socket
import threading
from urllib.parse import parse_qs, urlsplit

_BUFFER = 1 << 20
_ETAG = '"d41d8cd98f00b204e9800998ecf8427e"'


class Sink:
    """`size`: bytes that every object is said to have."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._content = memoryview(os.urandom(_BUFFER))

    def serve(self, listener: socket.socket) -> None:
        while True:
            peer, _ = listener.accept()
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._talk, args=(peer,), daemon=True).start()

    def _talk(self, peer: socket.socket) -> None:
        buffer = memoryview(bytearray(_BUFFER))
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
                left, rest = left - taken, rest[taken:]
                while left:
                    count = peer.recv_into(buffer[: min(left, _BUFFER)])
                    if not count:
                        return
                    left -= count
                self._answer(peer, method, target, headers)
        except (ConnectionError, BrokenPipeError):
            return
        finally:
            peer.close()

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256 << 20)
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        Sink(options.size).serve(listener)


if __name__ == "__main__":
    main()
