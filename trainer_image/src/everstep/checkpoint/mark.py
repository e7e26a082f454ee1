"""How far this pod has got, where the kubelet finds it whatever ends the container: in its termination message.

The heartbeat is seconds old when a gang is torn, and the pod that writes it may be the one that went. So the first rank
of each pod notes each step here as it ends: 32 bytes, in the page cache of its node.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from everstep.checkpoint import termination
from everstep.failure import MARK_BYTES, MAX_BYTES, decode, encode_mark, reached


class StepMark:
    """Made before the ranks first meet, without whom no step ends: so the mark or record that stands then is of former
    workers, and gives way. What comes later, such as a peer's record, stays, and so does what is not everstep's."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._stood = self._read()
        self.former = reached(self._stood)
        """The last step that ended in this container before, by workers whose place these take."""
        ours = not self._stood.strip() or self.former is not None or decode(self._stood) is not None
        self._writes = ours and os.environ.get("LOCAL_RANK", "0") == "0"

    def set(self, step: int) -> None:
        """This step has ended. Never raises, and waits for nobody who holds the file."""
        descriptor = termination.open_message(self._path) if self._writes else None
        if descriptor is None:
            return
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._replace(descriptor, encode_mark(step))
        os.close(descriptor)

    def _replace(self, descriptor: int, mark: bytes) -> None:
        if os.pread(descriptor, 2 * MAX_BYTES, 0) != self._stood:
            self._writes = False
            return
        os.pwrite(descriptor, mark, 0)
        if len(self._stood) > MARK_BYTES:
            os.ftruncate(descriptor, MARK_BYTES)
        self._stood = mark

    def _read(self) -> bytes:
        descriptor = termination.open_message(self._path)
        if descriptor is None:
            return b""
        try:
            return os.pread(descriptor, 2 * MAX_BYTES, 0)
        except OSError:
            return b""
        finally:
            os.close(descriptor)
