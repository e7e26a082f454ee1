"""The register's document: what is committed, who owns it, who may commit next.

Documents are frozen and keep fields that they do not know, so that an older reader that swaps a newer document loses
nothing. The checksum covers the canonical body: a document that was cut or edited by hand is refused, not trusted.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from everstep.catalog.fields import Attempt, Count, Epoch, Finite, Moment, Step, Text, Uri
from everstep.catalog.keys import CATALOG, Location
from everstep.catalog.policy import Retention
from everstep.errors import CatalogFormatError, CatalogUnreadableError

FORMAT = 1
MAX_DOCUMENT_BYTES = 4 << 20
MAX_ENTRIES = 4096
MAX_DISPLACED = 64
RESERVE = 256 << 10
"""Bytes that commits and holds leave free, so that a full register can still be fenced, claimed and pruned."""

State = Literal["live", "quarantined", "abandoned"]


def _location(text: str) -> str:
    Location.parse(text)
    return text


LocationText = Annotated[str, AfterValidator(_location)]


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
    attempt: Attempt
    epoch: Epoch
    resumed: Uri | None = None
    """Location (or source URI) that the group resumed from; None for a fresh start."""
    at: Moment


class Beginning(Document):
    """Where the worker group began that has trained last, of those with a local tier: what it has kept on its nodes may
    be resumed, and what any other has kept may not."""

    claim: Text
    epoch: Epoch
    local: LocationText | None = None
    """The save of the local tier that it resumed, at least as new as what its claim names."""


class Entry(Document):
    """One committed checkpoint. `seq` orders commits; `digest` is the SHA-256 of its manifest's bytes."""

    seq: Count
    step: Step
    epoch: Epoch
    attempt: Attempt
    location: LocationText
    digest: Text
    bytes: Count
    files: Count = 0
    committed: Moment
    score: Finite = None
    score_of: Text | None = None
    """The metric that the score is of; None where its writer did not tell."""
    pinned: bool = False
    state: State = "live"
    reason: Text | None = None
    """Why it is not live any more."""


class Removal(Document):
    """The intent to delete a location's keys, kept until they are gone."""

    location: LocationText
    step: Step
    bytes: Count = 0
    since: Moment


class Hold(Document):
    """A reader's plea to keep an entry: a fork, an export, an evaluation."""

    location: LocationText
    by: Text
    until: Moment


class Source(Document):
    """The checkpoint of another job that this one was forked from; its digest pins the content."""

    root: Text
    location: LocationText
    step: Step
    digest: Text


class Catalog(Document):
    format: int = FORMAT
    generation: Count = 0
    swap: Text = ""
    owner: Owner | None = None
    """None: used by the library alone, without an operator."""
    displaced: Annotated[tuple[Text, ...], Field(max_length=MAX_DISPLACED)] = ()
    """Uids that this root was taken over from, oldest first: none of them comes back by itself."""
    attempt: Attempt = 0
    epoch: Epoch = 0
    fence: Text | None = None
    """Random id of the last fence, by which its author finds it again after a lost answer."""
    sequence: Count = 0
    """The largest seq ever given out."""
    claim: Claim | None = None
    begun: Beginning | None = None
    """None: nothing but what is committed may be resumed, as after a user's own choice of where to begin."""
    source: Source | None = None
    retention: Retention | None = None
    """The policy that was applied last."""
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


def encode(catalog: Catalog, reserve: int = 0) -> bytes:
    """The document with its checksum. Raises CatalogUnreadableError for what could not be read back, or would leave
    less than `reserve` bytes of the bound free.
    """
    try:
        content = catalog.model_dump(mode="json")
        content.pop("checksum", None)
        content["checksum"] = hashlib.sha256(_canonical(content)).hexdigest()
        body = _canonical(content)
    except (ValueError, RecursionError) as error:
        raise CatalogUnreadableError(f"the catalog cannot be written as JSON: {error}") from error
    most = MAX_DOCUMENT_BYTES - reserve
    if len(body) > most:
        raise CatalogUnreadableError(
            f"the catalog would grow to {len(body)} bytes, more than {most}: remove checkpoints with `everstep prune`"
        )
    _validate(content, CATALOG)  # transitions copy without validation; nothing is written that nobody could read
    return body


def decode(body: bytes, name: str = CATALOG) -> Catalog:
    """Raises CatalogUnreadableError, saying what is wrong, for anything but an intact document of a known format."""
    if len(body) > MAX_DOCUMENT_BYTES:
        raise CatalogUnreadableError(f"{name} has more than {MAX_DOCUMENT_BYTES} bytes")
    try:
        content = json.loads(body)
        checksum = content.pop("checksum", None) if isinstance(content, dict) else None
        canonical = _canonical(content)
    except (ValueError, RecursionError) as error:  # also NaN, lone surrogates, brackets without end
        raise CatalogUnreadableError(f"{name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CatalogUnreadableError(f"{name} is not a JSON object")
    if content.get("format") != FORMAT:
        found = repr(content.get("format"))[:40]
        raise CatalogFormatError(f"{name} has format {found}; this version reads {FORMAT}: use the one that wrote it")
    if checksum != hashlib.sha256(canonical).hexdigest():
        raise CatalogUnreadableError(f"{name} does not match its own checksum: it was cut short or edited by hand")
    return _validate(content, name)


def _validate(content: dict[str, Any], name: str) -> Catalog:
    try:
        return Catalog.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CatalogUnreadableError(f"{name}: {where}: {first['msg']}") from error
    except RecursionError as error:
        raise CatalogUnreadableError(f"{name} is nested too deeply") from error
