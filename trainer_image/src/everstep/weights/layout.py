"""safetensors files laid out before a byte of theirs is there, so that tensors are put straight into their places.

The library's own writer wants all tensors of a file in memory and makes a second copy of them. The format: eight bytes
with the length of a JSON header, the header with type, shape and place of each tensor, their bytes
(https://github.com/huggingface/safetensors#format). The header is padded to eight bytes and wide types come first, so
that each tensor is aligned and can be used where it lies.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from everstep.errors import CheckpointCorruptError, InvalidOperationError

NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
TYPES = {name: dtype for dtype, name in NAMES.items()}
METADATA = {"format": "pt"}
"""transformers refuses a file that does not say so."""
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000
"""As the library has it."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One tensor that is to be stored."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Layout:
    """One file: its header, its size in bytes, and where each tensor lies. Raises InvalidOperationError for a type that
    the format does not know.
    """

    def __init__(self, specs: Iterable[Spec]) -> None:
        ordered = sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.name))
        table: dict[str, Any] = {"__metadata__": METADATA}
        end = 0
        for spec in ordered:
            if spec.dtype not in NAMES:
                raise InvalidOperationError(f"{spec.name}: {spec.dtype} has no place in a safetensors file")
            place = [end, end + spec.nbytes]
            table[spec.name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": place}
            end += spec.nbytes
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.header = len(text).to_bytes(8, "little") + text
        self.size = len(self.header) + end
        self._specs = {spec.name: spec for spec in ordered}
        self._places = {name: table[name]["data_offsets"][0] for name in self._specs}

    @property
    def names(self) -> list[str]:
        return list(self._specs)

    def write_header(self, buffer: torch.Tensor) -> None:
        """`buffer`: flat uint8 of at least `size` elements."""
        buffer[: len(self.header)] = torch.frombuffer(bytearray(self.header), dtype=torch.uint8)

    def place(self, buffer: torch.Tensor, name: str) -> torch.Tensor:
        """The tensor in the file's bytes, to be filled."""
        spec = self._specs[name]
        start = len(self.header) + self._places[name]
        return buffer[start : start + spec.nbytes].view(spec.dtype).view(spec.shape)


def parse(buffer: torch.Tensor, where: str) -> dict[str, torch.Tensor]:
    """Tensors where they lie in a file's bytes (flat uint8). Raises CheckpointCorruptError for any other file."""
    try:
        length = int.from_bytes(buffer[:8].numpy().tobytes(), "little")
        if length > min(MAX_HEADER, buffer.numel() - 8):
            raise ValueError("the header is longer than the file")
        table = json.loads(buffer[8 : 8 + length].numpy().tobytes())
        data = buffer[8 + length :]
        return {name: _tensor(data, entry) for name, entry in table.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointCorruptError(f"{where} is not a safetensors file: {error}") from error


def _tensor(data: torch.Tensor, entry: Mapping[str, Any]) -> torch.Tensor:
    dtype, (low, high) = TYPES[entry["dtype"]], entry["data_offsets"]
    if not 0 <= low <= high <= data.numel():
        raise ValueError("a tensor lies outside of the file")
    return data[low:high].view(dtype).view(entry["shape"])


def file_name(number: int, count: int) -> str:
    """Of file `number`, from 0, of `count` files: the names that transformers looks for."""
    return SINGLE if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"


def index_of(files: Sequence[Iterable[Spec]]) -> bytes:
    """The index of several files: which tensor is in which."""
    names = {spec.name: file_name(number, len(files)) for number, specs in enumerate(files) for spec in specs}
    total = sum(spec.nbytes for specs in files for spec in specs)
    document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
    return json.dumps(document, indent=2).encode() + b"\n"
