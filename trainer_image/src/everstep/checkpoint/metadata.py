"""DCP's `.metadata`: pickled by DCP's convention, so that stock readers load it; unpickled here with an allow-list."""

from __future__ import annotations

import io
import pickle
from enum import Enum
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from everstep.errors import CheckpointUnreadableError

_ALLOWED = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
}


def _member(kind: object, name: object) -> Enum:
    """What Python 3.11.0 to 3.11.3 pickle an enum's member as: `getattr(kind, name)`, here of enums alone."""
    if not (isinstance(kind, type) and issubclass(kind, Enum) and isinstance(name, str) and name in kind.__members__):
        raise pickle.UnpicklingError(f"{name!r} of {kind!r} has no place in .metadata")
    return kind[name]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in .metadata")


def stored_at(name: str, offset: int, length: int, payload: int | None) -> Any:
    """DCP's record of where an archive lies, with one field that stock readers do not know.

    `payload`: where in the file the tensor's bytes begin, in row-major order; None where they are not so, or no tensor.
    """
    info = filesystem._StorageInfo(name, offset, length)
    if payload is not None:
        info.payload = payload  # type: ignore[attr-defined]
    return info


def payload_of(info: Any) -> int | None:
    found = getattr(info, "payload", None)
    return found if isinstance(found, int) else None


def encode(metadata: Metadata, location: str) -> bytes:
    metadata.version = filesystem.CURRENT_DCP_VERSION
    metadata.storage_meta = StorageMeta(checkpoint_id=location)
    return pickle.dumps(metadata)


def decode(body: bytes) -> Metadata:
    """Raises CheckpointUnreadableError for anything but the metadata of a DCP checkpoint."""
    try:
        metadata = _Unpickler(io.BytesIO(body)).load()
    except Exception as error:
        raise CheckpointUnreadableError(f".metadata cannot be read: {error}") from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise CheckpointUnreadableError(".metadata is not the metadata of a DCP checkpoint")
    return metadata
