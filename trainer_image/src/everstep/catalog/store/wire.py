"""HTTP exchanges whose bodies are the caller's memory: from it to the socket, from the socket into it, no copy between.

botocore builds, signs and parses every request; by its `before-send` event it lets another do the sending. Its own
sender takes ten times the processor time a byte: it copies bodies in small pieces under the interpreter's lock.

Every exchange has a deadline by size, beside the limit on silence: a server that trickles is as useless as one that is
gone. Connections are kept and used again; a proxy or an endpoint that this module does not handle is left to botocore.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import select
import socket
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import HTTPClientError
from botocore.httpsession import get_cert_path

from everstep.catalog.store.threads import at_once

_SLICE = 4 << 20
"""Bytes between two looks at the clock."""
_IDLE_SECONDS = 20.0
"""A connection that rested longer is not used again: servers close theirs without a word."""
_ANSWER_BYTES = 16 << 20
"""No answer but one that is read into the caller's memory is longer."""


class ExchangeError(HTTPClientError):
    """An exchange that ended without a whole answer."""

    fmt = "{reason}"


class Body(io.RawIOBase):
    """A request's body in memory, in the shape of the file that botocore wants to see."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self.view)}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        piece = self.view[self._position : self._position + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


@dataclass(slots=True)
class Reception:
    """Where the body of a good answer goes, and how much of it came."""

    into: memoryview
    filled: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, and bytes a second."""

    connect: float
    silence: float
    slowest: float

    def budget(self, size: int) -> float:
        """Seconds that an exchange of `size` bytes may take."""
        return 2 * self.silence + size / self.slowest


class Wire:
    """Sends requests for a botocore client. Threads share it; each exchange has a connection to itself."""

    def __init__(self, limits: Limits, tls: ssl.SSLContext | None) -> None:
        self._limits = limits
        self._tls = tls
        self._idle: dict[str, list[tuple[float, _Link]]] = defaultdict(list)
        self._lock = threading.Lock()
        self._local = threading.local()

    @contextlib.contextmanager
    def receiving(self, into: memoryview) -> Iterator[Reception]:
        """While it lasts, good answers to this thread's requests go into `into`."""
        self._local.reception = reception = Reception(into)
        try:
            yield reception
        finally:
            self._local.reception = None

    def send(self, request: AWSPreparedRequest, **_: Any) -> Any:
        """A handler of `before-send`: returns an AWSResponse. Raises ExchangeError."""
        url = urlsplit(request.url)
        body = request.body.view if isinstance(request.body, Body) else memoryview(_bytes(request.body))
        reception: Reception | None = getattr(self._local, "reception", None)
        size = len(body) + (len(reception.into) if reception else 0)
        link = self._take(url.netloc)
        link.until = time.monotonic() + self._limits.budget(size)
        fit = False
        try:
            answer = link.exchange(request, f"{url.path or '/'}{'?' if url.query else ''}{url.query}", body)
            content = _receive(answer, reception)
            fit = not answer.will_close and (answer.isclosed() or answer.length == 0) and not link.broken
        except (OSError, http.client.HTTPException) as error:
            raise ExchangeError(reason=f"{type(error).__name__}: {error}".rstrip(": ")) from error
        finally:
            if fit:
                self._keep(url.netloc, link)
            else:
                link.end()
        return AWSResponse(request.url, answer.status, cast("Any", dict(answer.getheaders())), _Raw(content))

    def connect(self, netloc: str, count: int) -> None:
        """Have so many connections ready for requests to come. Raises ExchangeError."""
        with self._lock:
            missing = count - len(self._idle[netloc])
        for link in at_once([partial(self._open, netloc)] * max(0, missing), "everstep-connect"):
            self._keep(netloc, link)

    def _take(self, netloc: str) -> _Link:
        while True:
            with self._lock:
                idle = self._idle[netloc]
                if not idle:
                    break
                since, link = idle.pop()
            if time.monotonic() - since < _IDLE_SECONDS and not link.closed_by_peer():
                return link
            link.end()
        return self._open(netloc)

    def _open(self, netloc: str) -> _Link:
        try:
            return _Link(netloc, self._limits, self._tls)
        except OSError as error:
            raise ExchangeError(reason=f"cannot connect to {netloc}: {error}") from error

    def _keep(self, netloc: str, link: _Link) -> None:
        with self._lock:
            self._idle[netloc].append((time.monotonic(), link))


class _Link(http.client.HTTPConnection):
    """One connection; its socket looks at the deadline before every system call."""

    def __init__(self, netloc: str, limits: Limits, tls: ssl.SSLContext | None) -> None:
        super().__init__(netloc)
        if tls is not None:
            self.default_port = http.client.HTTPS_PORT
            self.host, self.port = self._get_hostport(netloc, None)  # type: ignore[attr-defined]
        plain = socket.create_connection((self.host, self.port), limits.connect)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.until = 0.0
        self.broken = False
        self._silence = limits.silence
        try:
            self.socket: socket.socket = tls.wrap_socket(plain, server_hostname=self.host) if tls is not None else plain
        except OSError:
            plain.close()
            raise
        self.sock = _TimedSocket(self)

    def exchange(self, request: AWSPreparedRequest, target: str, body: memoryview) -> http.client.HTTPResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        headers.pop("expect", None)  # a round trip, to spare bytes that are hardly ever refused
        self.putrequest(request.method, target, skip_host="host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            self.putheader(name, value)
        try:
            self.endheaders()
            for start in range(0, len(body), _SLICE):
                self.sock.sendall(body[start : start + _SLICE])
        except (BrokenPipeError, ConnectionResetError):
            self.broken = True  # refused before all was sent: the answer may have come all the same
            try:
                return self.getresponse()
            except (OSError, http.client.HTTPException):
                pass
            raise
        return self.getresponse()

    def wait(self) -> float:
        """Seconds that the next system call may take."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("slower than allowed")
        return min(left, self._silence)

    def closed_by_peer(self) -> bool:
        """An idle connection has nothing to say but that it ends."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(0))

    def end(self) -> None:
        self.socket.close()


class _TimedSocket:
    """What http.client needs of a socket. Closing is the connection's owner's: http.client does it too early."""

    def __init__(self, link: _Link) -> None:
        self._link = link

    def sendall(self, data: Any) -> None:
        through, view = self._link.socket, memoryview(data)
        if isinstance(through, ssl.SSLSocket):  # its limit is on each record, not on the whole
            while view:
                through.settimeout(self._link.wait())
                view = view[through.send(view) :]
        else:
            through.settimeout(self._link.wait())
            through.sendall(view)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_TimedReader(self._link), 64 << 10)

    def close(self) -> None:
        pass


class _TimedReader(io.RawIOBase):
    def __init__(self, link: _Link) -> None:
        self._link = link

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._link.socket.settimeout(self._link.wait())
        return self._link.socket.recv_into(buffer)


class _Raw(io.BytesIO):
    """An answer's content as botocore reads it."""

    def stream(self) -> Iterator[bytes]:
        yield self.getvalue()


def _receive(answer: http.client.HTTPResponse, reception: Reception | None) -> bytes:
    if reception is None or answer.status not in (200, 206):
        content = answer.read(_ANSWER_BYTES)
        if answer.read(1):
            raise http.client.HTTPException(f"an answer of more than {_ANSWER_BYTES} bytes")
        return content
    expected, reception.filled = answer.length, 0
    if expected is not None and expected > len(reception.into):
        raise http.client.HTTPException(f"{expected} bytes came where {len(reception.into)} were asked for")
    while count := answer.readinto(reception.into[reception.filled :]):
        reception.filled += count
    if expected is not None and reception.filled < expected:
        raise http.client.IncompleteRead(b"", expected - reception.filled)
    if expected is None and answer.read(1):
        raise http.client.HTTPException(f"more bytes came than the {len(reception.into)} that were asked for")
    return b""


def _bytes(body: Any) -> bytes:
    if body is None:
        return b""
    return body.encode() if isinstance(body, str) else bytes(body.read() if hasattr(body, "read") else body)


def tls_context(bundle: str | None) -> ssl.SSLContext:
    """As botocore verifies: by `bundle`, else by REQUESTS_CA_BUNDLE, else by the certificates that it brings along."""
    path = bundle or os.environ.get("REQUESTS_CA_BUNDLE") or str(get_cert_path(True))
    return ssl.create_default_context(capath=path) if os.path.isdir(path) else ssl.create_default_context(cafile=path)
