"""State of user objects as what `torch.load(weights_only=True)` accepts: no class of anybody's is ever unpickled.

numpy arrays become marked tensors. What cannot be kept is refused when it is saved, with its place in the state, and
not when somebody needs it back.
"""

from __future__ import annotations

import io
import struct
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from everstep.errors import CheckpointUnreadableError, InvalidOperationError

_ARRAY = "everstep:ndarray"
_LENGTH = struct.Struct("<Q")
_PAGE = 4096
_SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


def to_plain(value: Any, where: str) -> Any:
    """Raises InvalidOperationError for a value that could not be loaded again."""
    if isinstance(value, np.generic) and not isinstance(found := value.item(), np.generic):
        return to_plain(found, where)
    if type(value) in _SCALARS:
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            raise InvalidOperationError(f"{where}: an array of dtype {value.dtype} cannot be kept in a checkpoint")
        kind = value.dtype.str
        raw = (
            torch.frombuffer(bytearray(np.ascontiguousarray(value).tobytes()), dtype=torch.uint8)
            if value.size
            else torch.empty(0, dtype=torch.uint8, device="cpu")
        )
        return {_ARRAY: raw, "dtype": kind, "shape": list(value.shape)}
    if isinstance(value, Mapping):
        return like(value, ((_key(key, where), to_plain(item, f"{where}.{key}")) for key, item in value.items()))
    if isinstance(value, tuple):
        return tuple(to_plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(value, list):
        return [to_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, set | frozenset):
        return {to_plain(item, where) for item in value}
    for base in (bool, int, float, str):  # enums and the like lose their class, not their value
        if isinstance(value, base):
            return base(value)
    raise InvalidOperationError(
        f"{where}: a {type(value).__module__}.{type(value).__qualname__} cannot be kept in a checkpoint; "
        "use numbers, strings, tensors, arrays, lists, tuples and dicts"
    )


def like(mapping: Mapping[Any, Any], items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dict, or the kind of it that may be loaded again: schedulers count their milestones in a Counter."""
    if type(mapping) is Counter:
        return Counter(dict(items))
    return OrderedDict(items) if type(mapping) is OrderedDict else dict(items)


def leaves(value: Any, where: str) -> Any:
    """The tree with its tensors as they are, and every other leaf as something that can be loaded again.

    Raises InvalidOperationError for one that could not, such as an array: DCP keeps each leaf as an item of its own.
    """
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Mapping):  # most of thousands are tensors, of which no place need be told
        return {
            key: item if isinstance(item, torch.Tensor) else leaves(item, f"{where}.{key}")
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [leaves(item, f"{where}.{i}") for i, item in enumerate(value)]
    if isinstance(value, np.ndarray):
        raise InvalidOperationError(f"{where}: an array cannot be kept here; make it a tensor")
    return to_plain(value, where)


def _key(key: Any, where: str) -> Any:
    if isinstance(key, str | int | float | bool | tuple | np.generic) or key is None:
        return to_plain(key, f"{where}, a key")
    raise InvalidOperationError(f"{where}: a key of type {type(key).__name__} cannot be kept in a checkpoint")


def from_plain(value: Any) -> Any:
    if isinstance(value, dict):
        if _ARRAY in value:
            raw = value[_ARRAY].numpy().tobytes()
            return np.frombuffer(raw, dtype=np.dtype(value["dtype"])).reshape(value["shape"]).copy()
        return like(value, ((key, from_plain(item)) for key, item in value.items()))
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(from_plain(item) for item in value)
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    return value


def pack(value: Any, where: str) -> torch.Tensor:
    """One flat uint8 tensor, so that a whole tree is one item of a checkpoint: its length, the tree, zeros.

    The zeros fill up a page, so that a number that grows by a digit changes nothing about how a save is laid out.
    """
    stream = io.BytesIO(bytes(_LENGTH.size))
    stream.seek(0, io.SEEK_END)
    torch.save(to_plain(value, where), stream)
    end = stream.tell()
    packed = bytearray(-(-end // _PAGE) * _PAGE)
    packed[:end] = stream.getbuffer()
    _LENGTH.pack_into(packed, 0, end - _LENGTH.size)
    return torch.frombuffer(packed, dtype=torch.uint8)


def unpack(tensor: torch.Tensor) -> Any:
    try:
        packed = tensor.numpy().tobytes()
        body = packed[_LENGTH.size :][: _LENGTH.unpack_from(packed)[0]]
        return from_plain(torch.load(io.BytesIO(body), map_location="cpu", weights_only=True))
    except Exception as error:
        raise CheckpointUnreadableError(f"packed state cannot be read: {error}") from error
