"""Memory that two processes see and no third can find: an anonymous file, handed over by its descriptor.

A name in /dev/shm would outlive a killed trainer, and a pod's /dev/shm is 64 MiB unless somebody mounts a larger one.
An anonymous file has neither trouble: it counts as the process's memory and goes with the last process that maps it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import tempfile
from dataclasses import dataclass

from everstep.errors import InvalidOperationError


class SharedBuffer:
    """`size` bytes, mapped here and, once it was named in a `Segment`, in the uploader. Reuse it: a fresh page costs
    more than the copy into it.
    """

    def __init__(self, size: int, *, populate: bool = True, descriptor: int | None = None) -> None:
        """`populate`: touch every page now rather than in the first copy. `descriptor`: of a file that has `size` bytes
        already, each with its place; it is closed with the buffer. None: memory that only this buffer names."""
        if size <= 0:
            raise InvalidOperationError(f"a shared buffer of {size} bytes: at least 1 is needed")
        self.size = size
        self.id = secrets.token_hex(8)
        self.descriptor = _anonymous_file(size) if descriptor is None else descriptor
        flags = mmap.MAP_SHARED | (getattr(mmap, "MAP_POPULATE", 0) if populate else 0)
        self._map = mmap.mmap(self.descriptor, size, flags=flags)
        self.view = memoryview(self._map)
        """Writable bytes. Tensors made of it (`torch.frombuffer(buffer.view, dtype=torch.uint8)`) share them."""

    @property
    def closed(self) -> bool:
        return self.descriptor < 0

    def close(self) -> None:
        """Let go of the memory: here at once, unless tensors or views of it live, and in the uploader soon."""
        if self.closed:
            return
        os.close(self.descriptor)
        self.descriptor = -1
        with contextlib.suppress(BufferError):  # somebody looks at it yet: the mapping goes with the last view
            self.view.release()
            self._map.close()

    def __del__(self) -> None:
        if getattr(self, "descriptor", -1) >= 0:
            os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class Segment:
    """`length` bytes of a buffer from `offset`."""

    buffer: SharedBuffer
    offset: int
    length: int

    def __post_init__(self) -> None:
        if not 0 <= self.offset <= self.offset + self.length <= self.buffer.size:
            raise InvalidOperationError(
                f"bytes {self.offset} to {self.offset + self.length} of a shared buffer of {self.buffer.size} bytes"
            )

    @property
    def view(self) -> memoryview:
        return self.buffer.view[self.offset : self.offset + self.length]


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("everstep")
    else:
        with tempfile.TemporaryFile() as file:  # not on Linux: a workstation
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
