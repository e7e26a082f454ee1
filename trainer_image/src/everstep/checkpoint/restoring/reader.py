"""One committed save as its manifest and `.metadata` describe it: what is stored where, and how to read it verified."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from everstep.catalog import File, Location, Manifest
from everstep.catalog.keys import METADATA
from everstep.checkpoint import collecting
from everstep.checkpoint import metadata as metadata_format
from everstep.checkpoint.blocks import Readable, covering, matching, read_verified_into, read_whole
from everstep.checkpoint.restoring.headstart import HeadStart
from everstep.errors import CheckpointUnreadableError


class SavedShards:
    """Reads one committed save. `manifest` has been checked against the register's digest.

    Its methods raise CheckpointUnreadableError where what is stored, though intact, contradicts itself.
    """

    def __init__(self, store: Readable, manifest: Manifest, holders: Mapping[int, Sequence[int]] | None = None) -> None:
        """`holders`: by the number of a file the ranks that can read it; None: all can read all."""
        self.store = store
        self.holders = holders
        self.manifest = manifest
        self.location = Location.parse(manifest.location)
        self.files = sorted(manifest.files, key=lambda file: file.name)
        self.numbers = {file.name: number for number, file in enumerate(self.files)}
        """Of the files, the same on all ranks."""
        self._metadata: Metadata | None = None
        self._ahead: tuple[int, HeadStart] | None = None

    def begin_ahead(self, name: str, steps: Sequence[int]) -> None:
        """Fetch the front of a file that is most likely needed, until `end_ahead`. `steps`: bytes of each request."""
        number, key = self.numbers[name], self.location.key(name)
        self._ahead = number, HeadStart(partial(self.store.read_into, key), self.files[number].size, steps)

    def fetched_ahead(self) -> tuple[int, int] | None:
        """The number of a file, and up to where it is here or on its way: nothing more is fetched ahead from now on."""
        return None if self._ahead is None else (self._ahead[0], self._ahead[1].stop())

    def end_ahead(self) -> None:
        """Let go of what was fetched ahead."""
        if self._ahead is not None:
            self._ahead[1].stop()
            self._ahead = None

    def read_metadata(self) -> bytes:
        return bytes(read_whole(self.store, self.location.key(METADATA), self.file(METADATA)))

    @collecting.paused()
    def use_metadata(self, body: bytes) -> None:
        """Verified bytes, of this rank's own reading or another's."""
        self._metadata = metadata_format.decode(body)

    @property
    def metadata(self) -> Metadata:
        if self._metadata is None:
            self.use_metadata(self.read_metadata())
        assert self._metadata is not None
        return self._metadata

    def read_tensor(self, name: str) -> torch.Tensor | None:
        """A tensor that was saved in one piece; None where the checkpoint has none of this name."""
        if name not in self.metadata.state_dict_metadata:
            return None
        indices = [index for index in self.metadata.storage_data if index.fqn == name]
        if len(indices) != 1:
            raise CheckpointUnreadableError(f"{name} is stored in {len(indices)} pieces, expected one")
        place = self.place(indices[0])
        file = self.file(place.relative_path)
        span = covering(place.offset, place.length, file.size)
        body = bytearray(span.end - span.start)
        self.read_into(self.numbers[file.name], span.start, memoryview(body))
        return tensor_in(memoryview(body)[place.offset - span.start :][: place.length])

    def read_into(self, number: int, start: int, into: memoryview) -> int:
        """Fill `into` with whole blocks of a file, verified. Returns the bytes fetched."""
        file, have, ahead = self.files[number], 0, self._ahead
        if ahead is not None and ahead[0] == number:
            have = matching(file, start, into, ahead[1].copy(start, into))
        if have == len(into):
            return have
        return have + read_verified_into(self.store, self.location.key(file.name), file, start + have, into[have:])

    def place(self, index: MetadataIndex) -> Any:
        """DCP's record of where an item lies: relative_path, offset, length."""
        place = self.metadata.storage_data.get(index)
        if place is None:
            raise CheckpointUnreadableError(f".metadata does not say where {index.fqn} is stored")
        if not 0 <= place.offset <= place.offset + place.length <= self.file(place.relative_path).size:
            raise CheckpointUnreadableError(f".metadata places {index.fqn} outside of {place.relative_path}")
        return place

    def stored_shape(self, item: ReadItem) -> torch.Size:
        """Of the piece of a tensor that an item is read from."""
        index = item.storage_index
        kept = self.metadata.state_dict_metadata[index.fqn]
        if isinstance(kept, TensorStorageMetadata):
            for chunk in kept.chunks:
                if chunk.offsets == index.offset:
                    return chunk.sizes
        raise CheckpointUnreadableError(f".metadata has no piece of {index.fqn} at {index.offset}")

    def payload(self, item: ReadItem) -> int | None:
        """Where in its file the bytes of an item's piece begin, in row-major order; None where that is not known."""
        index = item.storage_index
        place, kept = self.place(index), self.metadata.state_dict_metadata[index.fqn]
        start = metadata_format.payload_of(place)
        if start is None or isinstance(kept, BytesStorageMetadata):
            return None
        size = math.prod(self.stored_shape(item)) * kept.properties.dtype.itemsize
        if not place.offset <= start <= start + size <= place.offset + place.length:
            raise CheckpointUnreadableError(f".metadata places the bytes of {index.fqn} outside of its archive")
        return start

    def file(self, name: str) -> File:
        number = self.numbers.get(name)
        if number is None:
            raise CheckpointUnreadableError(f"{name} is not in the manifest of {self.location}")
        return self.files[number]


def tensor_in(archive: memoryview) -> torch.Tensor:
    loaded = unarchived(io.BytesIO(archive))
    if not isinstance(loaded, torch.Tensor):
        raise CheckpointUnreadableError(f"expected a tensor, found {type(loaded).__name__}")
    return loaded


def unarchived(stream: io.BytesIO) -> Any:
    """What `torch.save` wrote, without running anybody's code. Raises CheckpointUnreadableError."""
    try:
        return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointUnreadableError(f"an archive cannot be read: {error}") from error
