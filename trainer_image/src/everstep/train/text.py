"""Text as documents in a fixed order, from the standard library's sources, from files, or from object storage."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from everstep.catalog.store import open_store
from everstep.errors import InvalidOperationError

TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".text"}
RECORD_SUFFIXES = {".jsonl", ".ndjson"}


@dataclass(frozen=True, slots=True)
class Document:
    """`name` is what decides whether a document is held out; it is the same on every machine."""

    name: str
    text: bytes


def read_documents(source: str, text_field: str = "text", max_bytes: int = 16 << 20) -> list[Document]:
    """Documents in the order of their names, until `max_bytes`. Raises InvalidOperationError where there is no text."""
    if source == "stdlib":
        found = _folder(Path(sysconfig.get_path("stdlib")), {".py"})
    elif "://" in source:
        found = _objects(source)
    else:
        path = Path(source)
        if not path.exists():
            raise InvalidOperationError(f"data.source: {source} does not exist")
        single = iter([(path.name, path.read_bytes())]) if path.is_file() else None
        found = single or _folder(path, TEXT_SUFFIXES | RECORD_SUFFIXES)
    documents = list(_bounded(_split(found, text_field), max_bytes))
    if not documents:
        kinds = ", ".join(sorted(TEXT_SUFFIXES | RECORD_SUFFIXES))
        raise InvalidOperationError(f"data.source: no text in {source} (looked for {kinds})")
    return documents


def _folder(root: Path, suffixes: set[str]) -> Iterator[tuple[str, bytes]]:
    skipped = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3"}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.suffix in suffixes and not skipped.intersection(relative.parts) and path.is_file():
            yield relative.as_posix(), path.read_bytes()


def _objects(uri: str) -> Iterator[tuple[str, bytes]]:
    parent, _, name = uri.rstrip("/").rpartition("/")
    store = open_store(parent)
    for info in store.list(name):
        exact = info.key == name or info.key.startswith(f"{name}/")
        if exact and Path(info.key).suffix in TEXT_SUFFIXES | RECORD_SUFFIXES:
            yield info.key, store.get(info.key)


def _split(files: Iterable[tuple[str, bytes]], text_field: str) -> Iterator[Document]:
    for name, body in files:
        if Path(name).suffix not in RECORD_SUFFIXES:
            yield Document(name, body)
            continue
        for number, line in enumerate(body.splitlines()):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[text_field]
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidOperationError(f"{name}, line {number + 1}: no field {text_field!r}: {error}") from error
            yield Document(f"{name}:{number}", str(text).encode())


def _bounded(documents: Iterable[Document], most: int) -> Iterator[Document]:
    total = 0
    for document in documents:
        if not document.text:
            continue
        total += len(document.text)
        if total > most:
            return
        yield document


def is_held_out(name: str, share: float) -> bool:
    """By the name's hash, so that a document never changes sides when others come or go."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < share * 2**32
