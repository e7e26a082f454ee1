"""Text as documents in a fixed order, from the standard library's sources, from files, or from object storage."""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from everstep.catalog.store import Store, open_store
from everstep.data.lines import pieces, split_lines
from everstep.errors import InvalidOperationError, StorageRefusedError

TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".text"}
RECORD_SUFFIXES = {".jsonl", ".ndjson"}
SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3"}


@dataclass(frozen=True, slots=True)
class Document:
    """`name` is what decides whether a document is held out; it is the same on every machine."""

    name: str
    text: bytes


@dataclass(frozen=True, slots=True)
class _File:
    """Not read yet."""

    name: str
    store: Store
    key: str

    def pieces(self) -> Iterator[bytes]:
        try:
            yield from pieces(self.store, self.key)
        except InvalidOperationError as error:
            raise InvalidOperationError(f"data.source: {error}; make it readable, or take it out") from error


def read_documents(source: str, text_field: str = "text", max_bytes: int = 16 << 20) -> list[Document]:
    """Documents in the order of their names, `max_bytes` in all: the last one may be cut short.

    Raises InvalidOperationError where there is no text, or text that may not be read.
    """
    try:
        documents = list(_bounded(_split(_found(source), text_field, max_bytes), max_bytes))
    except (StorageRefusedError, PermissionError) as error:
        raise InvalidOperationError(f"data.source: {source} may not be read: {error}") from error
    if not documents:
        kinds = ", ".join(sorted(TEXT_SUFFIXES | RECORD_SUFFIXES))
        raise InvalidOperationError(f"data.source: no text in {source} (looked for {kinds})")
    return documents


def _found(source: str) -> Iterator[_File]:
    if source == "stdlib":
        return _folder(Path(sysconfig.get_path("stdlib")), {".py"})
    if "://" in source:
        return _objects(source)
    path = Path(source)
    if not path.exists():
        raise InvalidOperationError(f"data.source: {source} does not exist")
    return _one(path) if path.is_file() else _folder(path, TEXT_SUFFIXES | RECORD_SUFFIXES)


def _one(path: Path) -> Iterator[_File]:
    yield _File(path.name, open_store(str(path.absolute().parent)), path.name)


def _folder(root: Path, suffixes: set[str]) -> Iterator[_File]:
    store = open_store(str(root))
    for relative in sorted(_below(root)):
        if relative.suffix in suffixes and (root / relative).is_file():
            yield _File(relative.as_posix(), store, relative.as_posix())


def _below(root: Path) -> Iterator[Path]:
    """Without a look into what is skipped: below the standard library stand all installed packages."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED]
        yield from (Path(folder, name).relative_to(root) for name in names)


def _objects(uri: str) -> Iterator[_File]:
    parent, _, name = uri.rstrip("/").rpartition("/")
    store = open_store(parent)
    for info in store.list(name):
        exact = info.key == name or info.key.startswith(f"{name}/")
        if exact and Path(info.key).suffix in TEXT_SUFFIXES | RECORD_SUFFIXES:
            yield _File(info.key, store, info.key)


def _split(files: Iterable[_File], text_field: str, most: int) -> Iterator[Document]:
    for file in files:
        if Path(file.name).suffix in RECORD_SUFFIXES:
            yield from _records(file, text_field)
        else:
            yield Document(file.name, _head(file, most))


def _head(file: _File, most: int) -> bytes:
    body = bytearray()
    for piece in file.pieces():
        body += piece
        if len(body) >= most:
            break
    return bytes(body[:most])


def _records(file: _File, text_field: str) -> Iterator[Document]:
    for number, line in enumerate(line for line, _ in split_lines(file.pieces())):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[text_field]
        except (ValueError, KeyError, TypeError) as error:
            where = f"data.source: {file.name}, line {number + 1}"
            raise InvalidOperationError(f"{where}: no field {text_field!r} (data.text_field): {error}") from error
        if not isinstance(text, str):
            where = f"data.source: {file.name}, line {number + 1}"
            raise InvalidOperationError(f"{where}: {text_field!r} is {text!r}, not a string")
        yield Document(f"{file.name}:{number}", text.encode(errors="replace"))


def _bounded(documents: Iterable[Document], most: int) -> Iterator[Document]:
    room = most
    for document in documents:
        if document.text:
            yield Document(document.name, document.text[:room])
            room -= len(document.text)
        if room <= 0:
            return


def is_held_out(name: str, share: float) -> bool:
    """By the name's hash, so that a document never changes sides when others come or go."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < share * 2**32
