"""The tensors of a committed save, whole, however many ranks have stored their pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata

from everstep.catalog import Manifest, Store
from everstep.catalog.sums import BLOCK
from everstep.checkpoint.blocks import Span, covering, read_whole
from everstep.checkpoint.restoring.loading import load_alone
from everstep.checkpoint.restoring.reader import SavedShards
from everstep.errors import CheckpointUnreadableError
from everstep.weights.layout import Spec

MODEL = "model."


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle of a tensor, and where its archive lies: `span` are the whole blocks around it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int
    span: Span


class SavedTensors:
    """Those whose names begin with `prefix`, by their names without it. `manifest` has been checked against the
    register's digest.
    """

    def __init__(self, store: Store, manifest: Manifest, prefix: str = "") -> None:
        self.manifest = manifest
        self._prefix = prefix
        self._shards = SavedShards(store, manifest)
        self._stored = {
            name.removeprefix(prefix): kept
            for name, kept in self._shards.metadata.state_dict_metadata.items()
            if name.startswith(prefix) and isinstance(kept, TensorStorageMetadata)
        }

    def specs(self) -> list[Spec]:
        """In the order of the state dict that was saved."""
        return [Spec(name, kept.properties.dtype, tuple(kept.size)) for name, kept in self._stored.items()]

    def pieces(self, name: str) -> list[Piece]:
        """Raises CheckpointUnreadableError where they do not make up the tensor."""
        kept = self._stored[name]
        found = [self._piece(name, chunk) for chunk in kept.chunks]
        if sum(torch.Size(piece.sizes).numel() for piece in found) != kept.size.numel():
            raise CheckpointUnreadableError(f"the pieces of {name} do not make up a tensor of {tuple(kept.size)}")
        return found

    def _piece(self, name: str, chunk: ChunkStorageMetadata) -> Piece:
        place = self._shards.place(MetadataIndex(self._prefix + name, chunk.offsets))
        span = covering(place.offset, place.length, self._shards.file(place.relative_path).size)
        return Piece(tuple(chunk.offsets), tuple(chunk.sizes), place.relative_path, place.offset, place.length, span)

    def blocks(self, piece: Piece) -> tuple[int, ...]:
        """The sums of the blocks in which a piece lies: at equal places, equal sums are equal bytes."""
        return self._shards.file(piece.file).blocks[piece.span.start // BLOCK : -(-piece.span.end // BLOCK)]

    def read(self, name: str) -> torch.Tensor:
        """One whole tensor."""
        kept = self._stored[name]
        whole = torch.empty(kept.size, dtype=kept.properties.dtype, device="cpu")
        self.read_into({name: whole})
        return whole

    def read_into(self, tensors: Mapping[str, torch.Tensor], on_bytes: Callable[[int], None] = lambda _: None) -> None:
        """Fill whole tensors of the stored shapes and types where they lie, verified. Raises CheckpointCorruptError."""
        load_alone({self._prefix + name: tensor for name, tensor in tensors.items()}, self._shards, on_bytes)

    def assets(self, prefix: str) -> Iterator[tuple[str, bytearray]]:
        """Files that were kept below `prefix`, by their names without it, verified."""
        for file in self.manifest.files:
            if file.name.startswith(prefix):
                key = self._shards.location.key(file.name)
                yield file.name.removeprefix(prefix), read_whole(self._shards.store, key, file)
