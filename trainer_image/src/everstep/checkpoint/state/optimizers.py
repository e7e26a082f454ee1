"""State of optimizers as DCP items, and back into the very tensors that they step with.

Reading goes through torch, which knows the names of sharded parameters. Writing back does not: an optimizer's own
load_state_dict casts what it is given to the parameters' type, which loses bits of a state kept in higher precision.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.tensor import DTensor

from everstep.checkpoint.state.walk import Walk
from everstep.errors import InvalidOperationError

log = logging.getLogger("everstep")

_STATE = "optimizer.state."
_GROUP = re.compile(r"optimizer\.param_groups\.(\d+)\.(.+)$")

Optimizers = Sequence[torch.optim.Optimizer]


def check_kept(optimizers: Optimizers) -> None:
    """Raises InvalidOperationError for those whose state could be saved but never be loaded."""
    owners: dict[int, torch.optim.Optimizer] = {}
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise InvalidOperationError("optimizer: LBFGS keeps no state by parameter, so it cannot be restored")
        for parameter in _parameters(optimizer):
            other = owners.setdefault(id(parameter), optimizer)
            if other is not optimizer:
                raise InvalidOperationError(
                    f"optimizer: a parameter of shape {tuple(parameter.shape)} is in two optimizers "
                    f"({type(other).__name__} and {type(optimizer).__name__}); a checkpoint has one state for each "
                    "parameter, and that of one of them would be lost"
                )


def walk(model: nn.Module, optimizers: Optimizers) -> Walk:
    return Walk(model, optimizers, partial(_listed, model))


def capture(walk: Walk, optimizers: Optimizers) -> dict[str, Any]:
    """{state: {parameter: …}, param_groups: […]}. One that has no state, as it never has any or has not stepped, gets
    none by this, and takes no step."""
    state: dict[str, Any] = {}
    groups: list[dict[str, Any]] = []
    for number, optimizer in enumerate(optimizers):
        with _begun_already(optimizer) as untouched:
            found = walk.optimizer(number)
        groups += found["param_groups"]
        if not untouched:
            state |= found["state"]
    return {"state": state, "param_groups": groups}


@contextlib.contextmanager
def _begun_already(optimizer: torch.optim.Optimizer) -> Iterator[bool]:
    """Whether it has no state. torch would begin it by a step, which goes past the hooks on which a copy that is still
    under way relies, and is none of the run's own."""
    untouched = not optimizer.state
    if untouched:
        optimizer.state.update({parameter: {} for parameter in _parameters(optimizer)[:1]})
    try:
        yield untouched
    finally:
        if untouched:
            optimizer.state.clear()


def template(model: nn.Module, optimizers: Optimizers, metadata: Metadata) -> dict[str, Any]:
    """Where DCP is to load into. Raises InvalidOperationError where the checkpoint is that of another optimizer."""
    names = metadata.state_dict_metadata
    stored = _with_prefixes(names)
    state: dict[str, Any] = {}
    for optimizer in optimizers:
        with _begun_already(optimizer) as untouched:
            found = _listed(model, optimizer)
        if untouched:
            found["state"] = {}
        kept = {**found["state"], **_begun(model, optimizer, found, stored)}
        for parameter, values in kept.items():
            if f"{_STATE}{parameter}" not in stored:
                continue  # it had got no gradient yet
            missing = [key for key in values if f"{_STATE}{parameter}.{key}" not in stored]
            if missing:
                raise InvalidOperationError(
                    f"optimizer: the checkpoint has no {missing[0]!r} for {parameter}: it was saved with another "
                    f"optimizer or other options than this {type(optimizer).__name__}"
                )
            state[parameter] = values
    return {"state": state, "param_groups": _stored_groups(names)}


def left_out(model: nn.Module, names: Iterable[str], optimizers: Optimizers, metadata: Metadata) -> list[str]:
    """Those of the model's parameters, by their `names`, that have state in the checkpoint, and no optimizer here."""
    stored = _with_prefixes(metadata.state_dict_metadata)
    taken = {name for each in optimizers for group in _groups(model, each) for name in group["params"]}
    return [name for name in names if f"{_STATE}{name}" in stored and name not in taken]


def _with_prefixes(names: Mapping[str, Any]) -> set[str]:
    return {name[:end] for name in names for end, letter in enumerate(name) if letter == "."} | names.keys()


def _begun(
    model: nn.Module, optimizer: torch.optim.Optimizer, found: Mapping[str, Any], stored: set[str]
) -> dict[str, Any]:
    """State as the optimizer begins it, for parameters that have none now and some in the checkpoint: all of a fresh
    one, frozen ones, which may be trained again, and such that have got no gradient yet. The optimizer stays as it is.

    Raises InvalidOperationError for one of which this optimizer keeps no state.
    """
    groups: list[dict[str, Any]] = []
    names: list[str] = []
    for group, listed in zip(optimizer.param_groups, found["param_groups"], strict=True):
        pairs = zip(listed["params"], group["params"], strict=True)
        absent = {name: each for name, each in pairs if f"{_STATE}{name}" in stored and name not in found["state"]}
        names += absent
        if absent:
            groups.append({**group, "params": list(absent.values())})
    if not names:
        return {}
    state = _outlined(optimizer, groups, names)
    if state is None:
        with _reduced_to(optimizer, groups):
            state = dict(_listed(model, optimizer)["state"])
    unkept = next((name for name in names if name not in state), None)
    if unkept is not None:
        raise InvalidOperationError(
            f"optimizer: the checkpoint has state for {unkept}, but this {type(optimizer).__name__} keeps none: "
            "it was saved with another optimizer or other options"
        )
    return state


def _outlined(
    optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]], names: Sequence[str]
) -> dict[str, Any] | None:
    """State as a first step makes it, found out by one of shapes alone: it computes nothing and needs no gradients. The
    memory holds anything. None where that does not work, as with an optimizer that looks at values or at devices."""
    live = [parameter for group in groups for parameter in group["params"]]
    try:
        shapes = [_outline(parameter) for parameter in live]
        rest = iter(shapes)
        stepped = [{**group, "params": [next(rest) for _ in group["params"]]} for group in groups]
        with _reduced_to(optimizer, stepped), _undisturbed(optimizer):
            for each in shapes:
                each.grad = torch.zeros_like(each)
            optimizer.step()
            state = dict(optimizer.state)
        return {
            name: {key: _room(value, parameter.device) for key, value in state[each].items()}
            for name, each, parameter in zip(names, shapes, live, strict=True)
            if each in state
        }
    except Exception:
        log.debug("%s takes no step without memory", type(optimizer).__name__, exc_info=True)
        return None


def _outline(parameter: torch.Tensor) -> torch.nn.Parameter:
    """The same without memory."""
    if isinstance(parameter, DTensor):
        local = torch.empty_like(parameter._local_tensor, device="meta")
        return torch.nn.Parameter(DTensor(local, parameter._spec, requires_grad=False))
    return torch.nn.Parameter(torch.empty_like(parameter, device="meta"))


def _room(value: Any, device: torch.device) -> Any:
    """The same with memory. What a step keeps on the CPU, such as its counter, has some already."""
    if isinstance(value, DTensor):
        return DTensor(_room(value._local_tensor, device), value._spec, requires_grad=False)
    if type(value) is torch.Tensor:
        return torch.empty_like(value, device=device) if value.is_meta else value
    if isinstance(value, int | float | str | None):
        return value
    raise TypeError(f"a {type(value).__name__} may hold tensors")


@contextlib.contextmanager
def _reduced_to(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> Iterator[None]:
    """A fresh optimizer of some parameters alone, all of them to be trained."""
    before = optimizer.param_groups, optimizer.state
    frozen = [each for group in groups for each in group["params"] if not each.requires_grad]
    optimizer.param_groups, optimizer.state = groups, defaultdict(dict)
    for each in frozen:
        each.requires_grad_(True)
    try:
        yield
    finally:
        for each in frozen:
            each.requires_grad_(False)
        optimizer.param_groups, optimizer.state = before


def stored_members(metadata: Metadata) -> list[dict[str, Any]]:
    """Where DCP is to load the names of each stored group's parameters into: they are values, not metadata."""
    groups = _stored_groups(metadata.state_dict_metadata)
    return [{"params": None} if "params" in group else {} for group in groups]


def check_groups(model: nn.Module, optimizers: Optimizers, members: Sequence[Mapping[str, Any]]) -> None:
    """`members`: what `stored_members` gave, loaded. Raises InvalidOperationError where a group was several."""
    for optimizer in optimizers:
        for listed in _groups(model, optimizer):
            _stored_group(listed["params"], members)


def apply(model: nn.Module, optimizers: Optimizers, loaded: Mapping[str, Any]) -> None:
    """Every optimizer then has the state and the options of the checkpoint, and no other."""
    for optimizer in optimizers:
        groups = _groups(model, optimizer)
        optimizer.state.clear()
        for group, listed in zip(optimizer.param_groups, groups, strict=True):
            for parameter, name in zip(group["params"], listed["params"], strict=True):
                if name in loaded["state"]:
                    optimizer.state[parameter] = loaded["state"][name]
            _set_options(group, listed["params"], loaded["param_groups"])


def _set_options(group: dict[str, Any], names: Sequence[str], stored: Sequence[Mapping[str, Any]]) -> None:
    """A group of which the checkpoint knows nothing, such as that of layers added since, keeps its own."""
    for key, value in _stored_group(names, stored).items():
        if key != "params":
            group[key] = _taken(group.get(key), value)


def _taken(live: Any, value: Any) -> Any:
    """A stored option in place of the live one. Of containers the checkpoint has the leaves alone, by their names."""
    if isinstance(live, torch.Tensor) and isinstance(value, torch.Tensor):
        live.copy_(value)  # a compiled step holds this very tensor
        return live
    if not isinstance(value, dict):
        return value
    if isinstance(live, dict):
        keys = {str(key): key for key in live}
        stored = {keys.get(name, name): each for name, each in value.items()}
        return {**live, **{key: _taken(live.get(key), each) for key, each in stored.items()}}
    if value.keys() != {str(number) for number in range(len(value))}:
        return value
    before = live if isinstance(live, list) and len(live) == len(value) else [None] * len(value)
    return [_taken(each, value[str(number)]) for number, each in enumerate(before)]


def _stored_group(names: Sequence[str], stored: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The stored group that the named parameters were in; nothing where they were in none."""
    same = [candidate for candidate in stored if not set(names).isdisjoint(candidate.get("params", ()))]
    if not names and len(stored) == 1:
        same = list(stored)
    if len(same) > 1:
        raise InvalidOperationError(
            f"optimizer: {names[0]} and others of its group were in {len(same)} groups when the checkpoint was saved"
        )
    return same[0] if same else {}


def _stored_groups(names: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups: dict[int, dict[str, Any]] = defaultdict(dict)
    for name, item in names.items():
        found = _GROUP.match(name)
        if found is not None:
            *containers, last = found[2].split(".")
            within = groups[int(found[1])]
            for key in containers:
                within = within.setdefault(key, {})
            tensor = isinstance(item, TensorStorageMetadata)
            within[last] = torch.empty(item.size, dtype=item.properties.dtype, device="cpu") if tensor else None
    return [groups[number] for number in range(max(groups, default=-1) + 1)]


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Its groups by parameters' names. Takes no step, which may change parameters that were just loaded."""
    with _begun_already(optimizer):
        return list(_listed(model, optimizer)["param_groups"])


def _listed(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """State and groups by parameters' names; tensors are the live ones. Initialises a fresh optimizer's state."""
    with _undisturbed(optimizer):
        return dict(get_optimizer_state_dict(model, optimizer))


@contextlib.contextmanager
def _undisturbed(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """torch initialises a fresh optimizer's state by a step with zero gradients, unless there are gradients: no hook of
    the user's may see that step, and gradients that wait for the next real one outlast it."""
    hooks: Any = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    kept = [dict(each) for each in hooks]
    waiting = [] if optimizer.state else [(p, p.grad) for p in _parameters(optimizer) if p.grad is not None]
    for each in hooks:
        each.clear()
    for parameter, _ in waiting:
        parameter.grad = None
    try:
        yield
    finally:
        for each, content in zip(hooks, kept, strict=True):
            each.update(content)
        for parameter, gradient in waiting:
            parameter.grad = gradient
