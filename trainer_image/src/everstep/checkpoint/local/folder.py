"""What of the local tier lies on this node: `{root}/{job}/{claim}/rank-{rank}/{slot}/`, with a document in each slot
that says what it holds.

Each rank has two slots a claim: the newest save that all ranks have, and the one being written. A slot whose document
is missing holds nothing, so the document goes before the first byte changes and comes back after the last. Nothing here
has to outlive the node: files are not synced, and whatever a crash leaves is found out by its checksums.
"""

from __future__ import annotations

import ctypes
import fcntl
import glob
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from everstep.catalog import manifest as manifests
from everstep.catalog.fields import Text
from everstep.catalog.keys import METADATA
from everstep.catalog.manifest import Manifest
from everstep.catalog.store.posix import PosixStore
from everstep.checkpoint.blocks import read_whole
from everstep.errors import CheckpointError, StorageUnavailableError
from everstep.transfer import SharedBuffer

log = logging.getLogger("everstep")

SLOTS = ("a", "b")
DOCUMENT = "part.json"
SPARE = 64
"""One part in so many of the limit is left for documents and folders."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")
COPY_ON_WRITE = {0x9123683E: "btrfs", 0x2FC12FC1: "ZFS", 0xCA451A4E: "bcachefs"}
"""By their numbers in statfs(2): what is written over goes to a new place there, and a mapped file's process ends by
SIGBUS where there is none."""


class Part(Manifest):
    """One rank's part of a save: the files that it wrote, `.metadata` with their places among them."""

    claim: Text
    """Of the worker group that made it: of two groups with the same epoch, as after an older register was put back by
    hand, only one has it."""
    rank: int


@dataclass(frozen=True)
class Slot:
    """A folder with one rank's part of one save, or on the way there."""

    path: Path

    def clear(self) -> None:
        """From now on it holds nothing. Its files stay: the next save is written over them."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / DOCUMENT).unlink(missing_ok=True)

    def keep_only(self, names: set[str]) -> None:
        for entry in os.scandir(self.path):
            if entry.name not in names:
                Path(entry).unlink(missing_ok=True)

    def finish(self, part: Part, metadata: bytes) -> None:
        """Its files are written: from now on it holds this part."""
        write(self.path / METADATA, metadata)
        body = manifests.encode(part)
        write(self.path / DOCUMENT, f"{manifests.digest(body)}\n".encode() + body)

    def read(self) -> Part | None:
        """What it holds; None for nothing, or where that is told to be more than is there."""
        try:
            digest, _, body = (self.path / DOCUMENT).read_bytes().partition(b"\n")
            if manifests.digest(body) != digest.decode(errors="replace"):
                raise ValueError("it does not match its own checksum")
            part = Part.model_validate_json(body)
            for file in part.files:
                if (self.path / file.name).stat().st_size < file.size:
                    raise ValueError(f"{file.name} is shorter than {file.size} bytes")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, CheckpointError) as error:
            log.warning("%s is left out: %s", self.path / DOCUMENT, error)
            return None
        return part

    def read_metadata(self, part: Part) -> bytes:
        """Verified, as all that is read of a part. Raises CheckpointCorruptError."""
        file = next(file for file in part.files if file.name == METADATA)
        return bytes(read_whole(PosixStore(self.path), METADATA, file))


@dataclass(frozen=True)
class Found:
    part: Part
    slot: Slot


class LocalFolder:
    """Of one job on this node, for all ranks that run here. `limit`: bytes that all files below `root` may have."""

    def __init__(self, root: Path, job: str, limit: int | None = None) -> None:
        self.root = root
        self.limit = limit
        self.path = root / hashlib.sha256(job.encode()).hexdigest()[:16]

    def make(self) -> str:
        """Returns what tells this node's folder from those of all other nodes. Raises StorageUnavailableError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            found = self.path.stat()
        except OSError as error:
            raise StorageUnavailableError(f"the local tier {self.root}: {error.strerror}") from error
        boot = _BOOT.read_text().strip() if _BOOT.exists() else os.uname().nodename
        return f"{boot}-{found.st_dev}-{found.st_ino}"

    def slot(self, claim: str, rank: int, name: str) -> Slot:
        return Slot(self.path / claim / f"rank-{rank}" / name)

    def scan(self) -> list[Found]:
        """All parts that are whole by what their documents say; whether their bytes are right is seen in reading."""
        slots = [Slot(path.parent) for path in sorted(_matching(self.path, f"*/rank-*/*/{DOCUMENT}"))]
        return [Found(part, slot) for slot in slots if (part := slot.read()) is not None]

    def groups(self) -> tuple[Path, ...]:
        """The folders of all worker groups that have saved here."""
        return tuple(_matching(self.path, "*"))

    def drop(self, groups: Iterable[Path], local: str | None) -> None:
        """Remove of these groups what is no part of the save `local`. What cannot be removed is left."""
        for group in groups:
            slots = [Slot(path) for path in _matching(group, "rank-*/*")]
            stay = [slot for slot in slots if local is not None and (part := slot.read()) and part.location == local]
            for slot in slots:
                if slot not in stay:
                    shutil.rmtree(slot.path, ignore_errors=True)
            if not stay:
                shutil.rmtree(group, ignore_errors=True)

    def clear(self, claim: str) -> None:
        """From now on no slot of this group holds anything, copies of other nodes' parts included."""
        for folder, _, names in os.walk(self.path / claim, onerror=_unless_gone):
            if DOCUMENT in names:
                Path(folder, DOCUMENT).unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def buffer(self, path: Path, size: int) -> SharedBuffer:
        """Memory that is the file `path`, anew, with a place for each of its bytes: to write into a mapped file for
        which there is none would end the process. Raises StorageUnavailableError where the tier is full, or where its
        file system cannot promise the place for good."""
        kind = COPY_ON_WRITE.get(file_system(self.root))
        if kind is not None:
            raise StorageUnavailableError(
                f"the local tier {self.root} is on {kind}, which looks for new room whenever a file is written over: "
                "give it a tmpfs, or a disk with ext4 or xfs"
            )
        path.unlink(missing_ok=True)
        with self._alone():
            self._check(size)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            except BaseException as error:
                path.unlink(missing_ok=True)
                os.close(descriptor)
                if isinstance(error, OSError):
                    raise StorageUnavailableError(f"the local tier {self.root}: {error.strerror}") from error
                raise
        return SharedBuffer(size, descriptor=descriptor)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The ranks of a node take room one after the other: together they would see the same room and exceed it, and
        a kubelet evicts a pod whose volume is over its limit."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _check(self, more: int) -> None:
        used = self.used()
        if self.limit is not None and used + more > self.limit - self.limit // SPARE:
            raise StorageUnavailableError(
                f"the local tier {self.root} is full: of its {self.limit} bytes {used} are used, and a save needs "
                f"{more} more; two saves must fit"
            )

    def used(self) -> int:
        """Bytes of all files below the root, of other jobs too."""
        return sum(_size(Path(folder, name)) for folder, _, names in os.walk(self.root) for name in names)


def file_system(path: Path) -> int:
    """The number of its kind, of statfs(2); 0 where that is not known."""
    if sys.platform != "linux":
        return 0
    answer = (ctypes.c_long * 64)()  # more than any architecture's struct; the kind is its first word
    return 0 if ctypes.CDLL(None).statfs(os.fsencode(path), answer) else answer[0]


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _matching(folder: Path, pattern: str) -> list[Path]:
    """What cannot be looked into is left out. Path.glob raises where another rank of the node removes a folder that it
    is about to look into."""
    return [folder / name for name in glob.glob(pattern, root_dir=folder)]


def _size(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def write(path: Path, body: bytes | bytearray) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(body)
    os.replace(temporary, path)
