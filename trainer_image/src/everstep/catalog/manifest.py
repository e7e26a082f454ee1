"""What one save holds, byte for byte: the list that restore, verify and removal go by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from everstep.catalog.fields import Attempt, Count, Epoch, Finite, Metrics, Moment, Step, Text
from everstep.catalog.keys import is_checkpoint_file, is_weights_file
from everstep.catalog.sums import BLOCK as BLOCK
from everstep.errors import CheckpointCorruptError, CheckpointUnreadableError, InvalidOperationError

FORMAT = 1
MAX_MANIFEST_BYTES = 256 << 20


def _file_name(name: str) -> str:
    if not is_checkpoint_file(name) and not is_weights_file(name):
        raise ValueError(f"{name!r} is not a file of a checkpoint or of a set of weights")
    return name


class _Document(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class File(_Document):
    """One object of a save. `blocks`: CRC32C of each BLOCK bytes, the last one shorter."""

    name: Annotated[str, AfterValidator(_file_name)]
    size: Count
    blocks: tuple[int, ...]
    rank: int | None = None

    @model_validator(mode="after")
    def _is_covered(self) -> Self:
        if len(self.blocks) != -(-self.size // BLOCK):
            raise ValueError(f"{len(self.blocks)} sums for the {self.size} bytes of {self.name}")
        return self


class Progress(_Document):
    """How far the run had come: counters of the whole gang."""

    step: Step
    samples: Count = 0
    tokens: Count = 0
    epoch: Count = 0


class Manifest(_Document):
    format: int = FORMAT
    location: str
    step: Step
    epoch: Epoch
    """The claim's epoch, as in the location; not an epoch of the data."""
    attempt: Attempt
    world_size: int
    mesh: dict[str, Any] = Field(default_factory=dict)
    """Names and sizes of the device mesh's dimensions."""
    files: tuple[File, ...]
    progress: Progress
    metrics: Metrics = Field(default_factory=dict)
    score: Finite = None
    score_of: Text | None = None
    """The metric that it is of."""
    started: Moment
    written: Moment
    versions: dict[str, str] = Field(default_factory=dict)
    config_digest: str | None = None
    config: Any = None
    """The configuration itself, where it is small."""
    custom: dict[str, Any] = Field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    def file(self, name: str) -> File | None:
        return next((file for file in self.files if file.name == name), None)


def encode(manifest: Manifest) -> bytes:
    """Raises InvalidOperationError where nobody would read it again: a save of some terabytes, or custom data of many
    megabytes."""
    body = manifest.model_dump_json().encode()
    if len(body) > MAX_MANIFEST_BYTES:
        raise InvalidOperationError(
            f"the manifest of step {manifest.step} would have {len(body)} bytes, more than {MAX_MANIFEST_BYTES}: "
            f"a save of {manifest.bytes / 2**40:.1f} TiB in {len(manifest.files)} files is too large"
        )
    return body


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def decode(body: bytes, expected_digest: str | None = None) -> Manifest:
    """Raises CheckpointCorruptError where the bytes are not those that were committed, or are no manifest, and
    CheckpointUnreadableError where they are those, but of a form that this version does not know.
    """
    if expected_digest is not None and digest(body) != expected_digest:
        raise CheckpointCorruptError(f"manifest.json has SHA-256 {digest(body)}, committed was {expected_digest}")
    try:
        return Manifest.model_validate_json(body)
    except ValidationError as error:
        what = f"manifest.json: {error.errors()[0]['msg']}"
        if expected_digest is not None:
            raise CheckpointUnreadableError(f"{what}: intact, but not as this version writes it") from error
        raise CheckpointCorruptError(what) from error


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their paths: `config.model.layers`."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
