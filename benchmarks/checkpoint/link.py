"""A link between client and server: bytes are counted and, on demand, held to a rate and delayed.

A process of its own, as not every kernel has netem. Each direction has the rate, shared by all connections; half of the
round trip is added each way, and a whole one to a new connection, for its handshake. A connection has two MiB under
way at most each way, as a window would allow. There are no losses and no slow start.

It obeys lines on standard input, and answers each: `shape`, `open`, `count` (bytes to the server and from it).
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

RATE = 125_000_000
"""Bytes of payload a second: 1 Gbit/s."""
ROUND_TRIP = 0.030
_CHUNK = 128 << 10
_WINDOW = (2 << 20) // _CHUNK


class Direction:
    """One way of the link."""

    def __init__(self) -> None:
        self.bytes = 0
        self.shaped = False
        self._free = 0.0
        self._lock = threading.Lock()

    def due(self, count: int) -> float:
        """When the last of `count` bytes that are sent now arrives."""
        now = time.monotonic()
        with self._lock:
            self.bytes += count
            if not self.shaped:
                return now
            self._free = max(now, self._free) + count / RATE
            return self._free + ROUND_TRIP / 2

    def carry(self, source: socket.socket, target: socket.socket, ready: float) -> None:
        """Until the source has no more. `ready`: when the connection stands."""
        under_way: queue.Queue[tuple[float, bytes]] = queue.Queue(_WINDOW)
        threading.Thread(target=_deliver, args=(under_way, target), daemon=True).start()
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK):
                under_way.put((max(self.due(len(chunk)), ready), chunk))
        under_way.put((0.0, b""))


def _deliver(under_way: queue.Queue[tuple[float, bytes]], target: socket.socket) -> None:
    alive = True
    while True:
        due, chunk = under_way.get()
        if not chunk:
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)
            return
        if (pause := due - time.monotonic()) > 0:
            time.sleep(pause)
        try:
            if alive:
                target.sendall(chunk)
        except OSError:
            alive = False  # the sender goes on until it notices


class Proxy:
    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self.up, self.down = Direction(), Direction()

    def serve(self, listener: socket.socket) -> None:
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(self._target)
            ready = time.monotonic() + (1.5 * ROUND_TRIP if self.up.shaped else 0)
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for direction, source, sink in ((self.up, client, server), (self.down, server, client)):
                threading.Thread(target=direction.carry, args=(source, sink, ready), daemon=True).start()

    def obey(self, command: str) -> str:
        if command in ("shape", "open"):
            self.up.shaped = self.down.shaped = command == "shape"
        return f"{self.up.bytes} {self.down.bytes}"


class Link:
    """The harness's end of a proxy."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.url = self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _say(self, command: str) -> tuple[int, int]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        up, down = self._answer().split()
        return int(up), int(down)

    @property
    def bytes(self) -> tuple[int, int]:
        """To the server, and from it."""
        return self._say("count")

    @contextmanager
    def shaped(self) -> Iterator[None]:
        self._say("shape")
        try:
            yield
        finally:
            self._say("open")


@contextmanager
def linked(url: str) -> Iterator[Link]:
    """A link to the server at `url`; clients use the link's own url."""
    command = [sys.executable, "-m", "benchmarks.checkpoint.link", url.removeprefix("http://")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Link(process)
        finally:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="host:port")
    host, _, port = parser.parse_args().target.rpartition(":")
    proxy = Proxy((host, int(port)))
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        threading.Thread(target=proxy.serve, args=(listener,), daemon=True).start()
        for line in sys.stdin:
            print(proxy.obey(line.strip()), flush=True)


if __name__ == "__main__":
    main()
