"""Free TCP ports on loopback, below the kernel's ephemeral range so that no outgoing connection takes them."""

from __future__ import annotations

import contextlib
import random
import socket

RANGE = range(20000, 32000)


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """`count` different ports that were free on `address` a moment ago; the caller binds them soon."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.sample(RANGE, len(RANGE)):
            listener = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind((address, port))
                found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError(f"only {len(found)} of {count} ports are free on {address} in {RANGE.start}..{RANGE.stop - 1}")
