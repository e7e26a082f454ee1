"""The register's document: what is committed, who owns it, who may commit next.

Documents are frozen and keep fields that they do not know, so that an older reader that swaps a newer document loses
nothing. The checksum covers the canonical body: a document that was cut or edited by hand is refused, not trusted.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from everstep.catalog.keys import Location
from everstep.errors import CatalogUnreadableError

FORMAT = 1
MAX_DOCUMENT_BYTES = 4 << 20
MAX_ENTRIES = 4096

State = Literal["live", "quarantined", "abandoned"]


def _location(text: str) -> str:
    Location.parse(text)
    return text


LocationText = Annotated[str, AfterValidator(_location)]
Text = Annotated[str, Field(max_length=1024)]


class Document(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Owner(Document):
    """Whose root this is. `cluster` is the uid of the kube-system namespace."""

    cluster: Text
    namespace: Text
    name: Text
    uid: Text

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name} (uid {self.uid}) in cluster {self.cluster}"


class Claim(Document):
    """The worker group that may commit now."""

    id: Text
    attempt: int
    epoch: int
    resumed: Text | None = None
    """Location (or source URI) that the group resumed from; None for a fresh start."""
    at: datetime


class Entry(Document):
    """One committed checkpoint. `seq` orders commits; `digest` is the SHA-256 of its manifest's bytes."""

    seq: int
    step: int
    epoch: int
    attempt: int
    location: LocationText
    digest: Text
    bytes: int
    files: int = 0
    committed: datetime
    score: float | None = None
    pinned: bool = False
    state: State = "live"
    reason: Text | None = None
    """Why it is not live any more."""


class Removal(Document):
    """The intent to delete a location's keys, kept until they are gone."""

    location: LocationText
    step: int
    bytes: int = 0
    since: datetime


class Hold(Document):
    """A reader's plea to keep an entry: a fork, an export, an evaluation."""

    location: LocationText
    by: Text
    until: datetime


class Source(Document):
    """The checkpoint of another job that this one was forked from; its digest pins the content."""

    root: Text
    location: LocationText
    step: int
    digest: Text


class Catalog(Document):
    format: int = FORMAT
    generation: int = 0
    swap: str = ""
    owner: Owner | None = None
    """None: used by the library alone, without an operator."""
    attempt: int = 0
    epoch: int = 0
    fence: str | None = None
    """Random id of the last fence, by which its author finds it again after a lost answer."""
    sequence: int = 0
    """The largest seq ever given out."""
    claim: Claim | None = None
    source: Source | None = None
    checkpoints: Annotated[tuple[Entry, ...], Field(max_length=MAX_ENTRIES)] = ()
    removing: Annotated[tuple[Removal, ...], Field(max_length=MAX_ENTRIES)] = ()
    holds: Annotated[tuple[Hold, ...], Field(max_length=MAX_ENTRIES)] = ()

    def live(self) -> list[Entry]:
        """Live entries, oldest commit first."""
        return sorted((entry for entry in self.checkpoints if entry.state == "live"), key=lambda entry: entry.seq)

    def latest(self) -> Entry | None:
        """The latest committed step: the live entry with the highest seq."""
        return max((entry for entry in self.checkpoints if entry.state == "live"), key=lambda e: e.seq, default=None)

    def find(self, location: str) -> Entry | None:
        return next((entry for entry in self.checkpoints if entry.location == location), None)


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def encode(catalog: Catalog) -> bytes:
    content = catalog.model_dump(mode="json")
    content.pop("checksum", None)
    content["checksum"] = hashlib.sha256(_canonical(content)).hexdigest()
    body = _canonical(content)
    if len(body) > MAX_DOCUMENT_BYTES:
        raise CatalogUnreadableError(
            f"the catalog would grow to {len(body)} bytes, more than {MAX_DOCUMENT_BYTES}: "
            "remove checkpoints with `everstep prune`"
        )
    return body


def decode(body: bytes) -> Catalog:
    """Raises CatalogUnreadableError, saying what is wrong, for anything but an intact document of a known format."""
    if len(body) > MAX_DOCUMENT_BYTES:
        raise CatalogUnreadableError(f"catalog.json has more than {MAX_DOCUMENT_BYTES} bytes")
    try:
        content = json.loads(body)
    except ValueError as error:
        raise CatalogUnreadableError(f"catalog.json is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CatalogUnreadableError("catalog.json is not a JSON object")
    if content.get("format") != FORMAT:
        raise CatalogUnreadableError(f"catalog.json has format {content.get('format')!r}; this version reads {FORMAT}")
    checksum = content.pop("checksum", None)
    if checksum != hashlib.sha256(_canonical(content)).hexdigest():
        raise CatalogUnreadableError("catalog.json does not match its own checksum: it was cut short or edited by hand")
    try:
        return Catalog.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CatalogUnreadableError(f"catalog.json: {where}: {first['msg']}") from error
