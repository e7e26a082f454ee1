"""State of the user's own objects, and what of it differs between ranks.

Tensors of such an object become items of their own, sharded as they are. Plain tensors and values are one copy for the
whole gang where all ranks have the same; where ranks differ (a generator of each rank, running statistics that FSDP
does not share), each rank keeps its own, or a resumed run would not be the run that was interrupted.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from everstep.checkpoint.state import plain
from everstep.errors import CheckpointError, InvalidOperationError

log = logging.getLogger("everstep")

_REFERENCE = "everstep:tensor"

Getter = Callable[[], Any]
Setter = Callable[[Any], Any]
Tensors = dict[str, torch.Tensor]


def accessors(item: Any, name: str) -> tuple[Getter, Setter]:
    """state_dict()/load_state_dict() or get_state()/set_state(); a dict is its own state. Raises InvalidOperationError
    where it has neither."""
    if type(item) is dict:
        return item.copy, lambda state: _refill(item, state)
    for getter, setter in (("state_dict", "load_state_dict"), ("get_state", "set_state")):
        if callable(getattr(item, getter, None)) and callable(getattr(item, setter, None)):
            return getattr(item, getter), getattr(item, setter)
    raise InvalidOperationError(
        f"{name}: a {type(item).__name__} has neither state_dict()/load_state_dict() nor get_state()/set_state()"
    )


def state_of(item: Any, name: str) -> Any:
    """Raises CheckpointError, which names the object, whatever its own code raises."""
    getter = accessors(item, name)[0]
    try:
        return getter()
    except CheckpointError:
        raise
    except Exception as error:
        log.warning("the state of %s:", name, exc_info=True)  # where: the ranks hear only what
        call = f"{type(item).__name__}.{getattr(getter, '__name__', 'state_dict')}()"
        raise CheckpointError(f"{name}: {call} raised {type(error).__name__}: {error}") from error


def check_storable(name: str, tensor: torch.Tensor) -> None:
    """Raises InvalidOperationError for a tensor that is more, or less, than a block of numbers."""
    if tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized:
        return
    kind = "on the meta device" if tensor.is_meta else "quantized" if tensor.is_quantized else f"{tensor.layout}"
    raise InvalidOperationError(
        f"{name} is {kind}: only dense tensors of numbers can be saved. Make it one, or leave it out of the state "
        "(a buffer: persistent=False)"
    )


def _refill(item: dict[Any, Any], state: Mapping[Any, Any]) -> None:
    """In place: whoever else holds the dict sees what was loaded."""
    item.clear()
    item.update(state)


def set_apart(value: Any, path: str, tensors: Tensors, only_sharded: bool = False) -> Any:
    """The tree with its tensors replaced by references to `tensors`. Two different tensors never share a name."""
    if isinstance(value, torch.Tensor):
        if only_sharded and not isinstance(value, DTensor):
            return value
        while path in tensors:  # keys that hold slashes
            path += "'"
        check_storable(path, value)
        tensors[path] = value
        return {_REFERENCE: path}
    if isinstance(value, Mapping):
        parts = ((key, set_apart(item, f"{path}/{key}", tensors, only_sharded)) for key, item in value.items())
        return plain.like(value, parts)
    if type(value) in (list, tuple):
        return type(value)(set_apart(item, f"{path}/{i}", tensors, only_sharded) for i, item in enumerate(value))
    return value


def put_back(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if _REFERENCE in value:
            return tensors[value[_REFERENCE]]
        return plain.like(value, ((key, put_back(item, tensors)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return type(value)(put_back(item, tensors) for item in value)
    return value


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if _REFERENCE in value:
            yield value[_REFERENCE]
            return
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from references(item)


def digest(tree: Any, name: str) -> bytes:
    """Of plain values and plain tensors; sharded tensors belong to all ranks together."""
    tensors: Tensors = {}
    hashed = hashlib.sha256()
    shape = set_apart(tree, name, tensors)
    for path, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            continue
        hashed.update(f"{path} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            hashed.update(flat.view(torch.uint8).numpy().data)
    hashed.update(plain.pack(shape, "state").numpy().tobytes())
    return hashed.digest()


def unsharded_buffers(model: nn.Module, state: Mapping[str, Any]) -> Tensors:
    """Of a model's state dict what is neither a parameter nor sharded: each rank computes its own."""
    parameters = {p.data_ptr() for p in model.parameters() if not isinstance(p, DTensor)}
    return {
        name: value
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
        and not isinstance(value, DTensor)
        and value.numel()
        and value.data_ptr() not in parameters
    }
