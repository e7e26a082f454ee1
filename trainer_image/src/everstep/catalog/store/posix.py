"""A store in a directory: the local tier, the library on a workstation, tests.

A register `catalog.json` is the folder `catalog.d/` of versions named by number. A swap writes the next number by
temporary file, fsync, link(2), fsync of the directory; link fails where the number is taken, so exactly one writer
wins. Old versions are pruned from the low end, KEEP_VERSIONS behind the newest; a writer so late that its number may
have been pruned away sees that, takes its file back and does not claim that the swap was applied.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from everstep.catalog.store.base import (
    UNCHANGED,
    KeyNotFound,
    ObjectInfo,
    SwapRefused,
    SwapUnanswered,
    Unchanged,
    Versioned,
    never,
)
from everstep.errors import InvalidOperationError, StorageRefusedError, StorageUnavailableError

KEEP_VERSIONS = 200
_PARTIAL = ".partial-"


class PosixStore:
    retries = 0

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def uri(self) -> str:
        return str(self.root)

    # registers

    def read_register(self, key: str, known: str | None = None) -> Versioned | Unchanged | None:
        path = self._path(key)
        if not _is_versioned(key):
            return self._read_plain(path, known)
        for _ in range(100):
            try:
                numbers = self._versions(_versions_dir(path))
                if not numbers:
                    return None
                token = str(numbers[-1])
                if token == known:
                    return UNCHANGED
                return Versioned(_version(path, numbers[-1]).read_bytes(), token)
            except FileNotFoundError:
                continue  # pruned between the listing and the reading: a newer one stands
            except OSError as error:
                raise _storage_error(error, path) from error
        raise StorageUnavailableError(f"{path}: versions change faster than they can be read")

    def _read_plain(self, path: Path, known: str | None) -> Versioned | Unchanged | None:
        try:
            with path.open("rb") as file:
                stat = os.fstat(file.fileno())
                token = f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}"
                return UNCHANGED if token == known else Versioned(file.read(), token)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _storage_error(error, path) from error

    def swap_register(self, key: str, body: bytes, token: str | None) -> str:
        if not _is_versioned(key):
            raise InvalidOperationError(f"{key} is not a register")
        path = self._path(key)
        folder = _versions_dir(path)
        number = 1 if token is None else int(token) + 1
        target = _version(path, number)
        try:
            _make_directory(folder)
            numbers = self._versions(folder)
            if (numbers[-1] if numbers else 0) != number - 1:
                raise SwapRefused(f"{path}: version {number - 1} is not the newest")
            temporary = folder / f"{_PARTIAL}{secrets.token_hex(8)}"
            try:
                _write_durably(temporary, body)
                self._link(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_directory(folder)
            self._check_not_pruned(folder, target, number)
            self._prune(path, folder, number)
        except OSError as error:
            raise _storage_error(error, path) from error
        return str(number)

    @staticmethod
    def _link(temporary: Path, target: Path) -> None:
        try:
            os.link(temporary, target)
        except FileExistsError:
            raise SwapRefused(f"{target} is taken") from None
        except OSError:
            # On NFS the answer to a link that was made can be lost; then the temporary file has two names.
            if temporary.stat().st_nlink != 2:
                raise

    def _check_not_pruned(self, folder: Path, target: Path, number: int) -> None:
        """A name that was free only because its version had been pruned: then the newest is that far ahead."""
        if max(self._versions(folder), default=number) >= number + KEEP_VERSIONS:
            target.unlink(missing_ok=True)
            raise SwapUnanswered(f"{target} may have come after its number had been pruned")

    def _prune(self, path: Path, folder: Path, newest: int) -> None:
        for number in self._versions(folder):  # ascending: a gap never opens above a version that stands
            if number > newest - KEEP_VERSIONS:
                break
            _version(path, number).unlink(missing_ok=True)

    @staticmethod
    def _versions(folder: Path) -> list[int]:
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return []
        return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())

    # objects

    def get(self, key: str, limit: int | None = None) -> bytes:
        path = self._path(key)
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if limit is not None and size > limit:
                    raise InvalidOperationError(f"{path} has {size} bytes, more than {limit}")
                return file.read()
        except FileNotFoundError:
            raise KeyNotFound(str(path)) from None
        except OSError as error:
            raise _storage_error(error, path) from error

    def get_range(self, key: str, start: int, length: int) -> bytes:
        path = self._path(key)
        try:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(length)
        except FileNotFoundError:
            raise KeyNotFound(str(path)) from None
        except OSError as error:
            raise _storage_error(error, path) from error

    def read_into(self, key: str, start: int, into: memoryview) -> int:
        path, view, filled = self._path(key), into.cast("B"), 0
        try:
            with path.open("rb", buffering=0) as file:
                while filled < len(view):
                    count = os.preadv(file.fileno(), [view[filled:]], start + filled)
                    if not count:
                        break
                    filled += count
        except FileNotFoundError:
            raise KeyNotFound(str(path)) from None
        except OSError as error:
            raise _storage_error(error, path) from error
        return filled

    def put(self, key: str, body: bytes | bytearray | memoryview, sums: Sequence[int] = ()) -> int:
        path = self._path(key)
        temporary = path.with_name(f"{_PARTIAL}{secrets.token_hex(8)}")
        try:
            for _ in range(3):
                with contextlib.suppress(FileNotFoundError):  # a remover took the empty folder away meanwhile
                    _make_directory(path.parent)
                    _write_durably(temporary, body)
                    break
            os.replace(temporary, path)
            _sync_directory(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise _storage_error(error, path) from error
        return 0

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = prefix.rpartition("/")[0]
        base = self.root / folder if folder else self.root
        found = []
        for directory, _, names in os.walk(base, onerror=_not_absent):
            for name in names:
                path = Path(directory, name)
                key = path.relative_to(self.root).as_posix()
                if key.startswith(prefix) and not name.startswith(_PARTIAL):
                    with contextlib.suppress(FileNotFoundError):
                        stat = path.stat()
                        found.append(ObjectInfo(key, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC)))
        yield from sorted(found, key=lambda info: info.key)

    def list_folders(self, prefix: str) -> Iterator[str]:
        base = self.root / prefix.rstrip("/")
        try:
            names = sorted(entry.name for entry in os.scandir(base) if entry.is_dir())
        except FileNotFoundError:
            return
        except OSError as error:
            raise _storage_error(error, base) from error
        yield from (f"{prefix}{name}" for name in names)

    def delete(self, keys: Iterable[str]) -> None:
        parents = set()
        for key in keys:
            path = self._path(key)
            try:
                if _is_versioned(key):
                    shutil.rmtree(_versions_dir(path), ignore_errors=True)
                path.unlink(missing_ok=True)
            except NotADirectoryError:
                continue
            except OSError as error:
                raise _storage_error(error, path) from error
            parents.add(path.parent)
        for parent in parents:
            self._remove_if_empty(parent)

    def _remove_if_empty(self, folder: Path) -> None:
        """Object stores have no folders: an empty one must not look like a checkpoint."""
        while folder != self.root and folder.is_relative_to(self.root):
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    def abort_uploads(self, prefix: str, older_than: datetime, dead: Callable[[str], bool] = never) -> int:
        base = self.root / prefix.rstrip("/")
        count = 0
        files = (Path(folder, name) for folder, _, names in os.walk(base) for name in names)
        for path in [file for file in files if file.name.startswith(_PARTIAL)]:
            with contextlib.suppress(FileNotFoundError):
                began = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                if began < older_than or dead(path.relative_to(self.root).as_posix()):
                    path.unlink()
                    self._remove_if_empty(path.parent)
                    count += 1
        return count

    def _path(self, key: str) -> Path:
        path = self.root / key
        if not key or key.startswith("/") or ".." in Path(key).parts:
            raise InvalidOperationError(f"{key!r} is not a key below {self.root}")
        return path


def _is_versioned(key: str) -> bool:
    """Registers lie in the root itself; everything in a folder is an object."""
    return "/" not in key and key.endswith(".json")


def _versions_dir(path: Path) -> Path:
    return path.with_suffix(".d")


def _version(path: Path, number: int) -> Path:
    return _versions_dir(path) / f"{number:020}.json"


def _write_durably(path: Path, body: bytes | bytearray | memoryview) -> None:
    with path.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


def _not_absent(error: OSError) -> None:
    """A folder that cannot be read is not an empty one: nobody may conclude that no checkpoint stands there."""
    if not isinstance(error, FileNotFoundError):
        raise _storage_error(error, Path(error.filename)) from error


def _make_directory(path: Path) -> None:
    """With its parents, each of them as durable as a file: a commit must not outlive the folder of its shards."""
    if path.is_dir():
        return
    _make_directory(path.parent)
    path.mkdir(exist_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _storage_error(error: OSError, path: Path) -> StorageUnavailableError | StorageRefusedError:
    stays = isinstance(error, PermissionError | NotADirectoryError)
    kind = StorageRefusedError if stays else StorageUnavailableError
    return kind(f"{path}: {error.strerror or error}")
