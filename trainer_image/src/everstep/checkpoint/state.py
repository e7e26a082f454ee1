"""A training job's state as DCP items, and back.

model.*, optimizer.*     as `torch.distributed.checkpoint.state_dict` names them: stock tools find them
everstep.common          scheduler, data position, counters, other objects: one packed item, from rank 0
everstep.rank.{rank}     what each rank has of its own: one packed item a rank, so that nothing is deduplicated away
everstep.objects.*       tensors of other objects
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from everstep.checkpoint import plain, rng
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.metadata import shapes
from everstep.errors import ArchitectureMismatchError, CheckpointCorruptError, InvalidOperationError

COMMON = "everstep.common"
RANK = "everstep.rank."
OBJECTS = "everstep.objects."
_REFERENCE = "everstep:tensor"


@dataclass
class Application:
    """The objects whose state is kept. `others` by the names that the user gave them."""

    model: nn.Module | None = None
    optimizers: tuple[torch.optim.Optimizer, ...] = ()
    scheduler: Any = None
    data: Any = None
    others: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.optimizers and self.model is None:
            raise InvalidOperationError("an optimizer is kept together with its model: pass model= too")
        for name, item in (("scheduler", self.scheduler), ("data", self.data), *self.others.items()):
            if item is not None:
                accessors(item, name)


Getter = Callable[[], Any]
Setter = Callable[[Any], Any]


def accessors(item: Any, name: str) -> tuple[Getter, Setter]:
    """state_dict()/load_state_dict() or get_state()/set_state(). Raises InvalidOperationError where it has neither."""
    for getter, setter in (("state_dict", "load_state_dict"), ("get_state", "set_state")):
        if callable(getattr(item, getter, None)) and callable(getattr(item, setter, None)):
            return getattr(item, getter), getattr(item, setter)
    raise InvalidOperationError(
        f"{name}: a {type(item).__name__} has neither state_dict()/load_state_dict() nor get_state()/set_state()"
    )


# saving


def capture(app: Application, gang: Gang, counters: Mapping[str, int]) -> dict[str, Any]:
    """Collective. A nested state dict for DCP whose tensors are the live ones, not copies."""
    data, shared = _capture_data(app, gang)
    own: dict[str, Any] = {"rng": rng.capture()}
    common: dict[str, Any] = {
        "format": 1,
        "world_size": gang.world_size,
        "counters": dict(counters),
        "data_is_shared": shared,
    }
    if shared:
        common["data"] = data
    else:
        own["data"] = data
    if app.scheduler is not None:
        common["scheduler"] = accessors(app.scheduler, "scheduler")[0]()
    tensors: dict[str, torch.Tensor] = {}
    common["objects"] = {
        name: _set_apart(accessors(item, name)[0](), name, tensors) for name, item in sorted(app.others.items())
    }
    state: dict[str, Any] = {
        "everstep": {
            "rank": {str(gang.rank): plain.pack(own, "state of this rank")},
            "objects": tensors,
        }
    }
    if gang.leads:
        state["everstep"]["common"] = plain.pack(common, "state")
    if app.model is not None:
        state["model"] = get_model_state_dict(app.model)
    if app.model is not None and app.optimizers:
        state["optimizer"] = _optimizer_state(app.model, app.optimizers)
    return state


def _capture_data(app: Application, gang: Gang) -> tuple[Any, bool]:
    """The data's state, and whether it is the same on all ranks: only then does it fit another number of ranks."""
    if app.data is None:
        return None, True
    data = plain.to_plain(accessors(app.data, "data")[0](), "data")
    digest = hashlib.sha256(plain.pack(data, "data").numpy().tobytes()).digest()
    return data, len(set(gang.all_gather(digest))) == 1


def _set_apart(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The tree with its tensors replaced by references: those become items of their own, sharded as they are."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return {_REFERENCE: path}
    if isinstance(value, Mapping):
        return {key: _set_apart(item, f"{path}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_set_apart(item, f"{path}/{i}", tensors) for i, item in enumerate(value))
    return value


def _put_back(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if _REFERENCE in value:
            return tensors[value[_REFERENCE]]
        return {key: _put_back(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_put_back(item, tensors) for item in value)
    return value


def _optimizer_state(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """An optimizer that has not stepped yet keeps no state: torch's way to list it would make one step."""
    untouched = [optimizer for optimizer in optimizers if not optimizer.state]
    with _hooks_disarmed(optimizers):
        state = dict(get_optimizer_state_dict(model, list(optimizers)))
    if untouched:
        if len(untouched) != len(optimizers):
            raise InvalidOperationError("some optimizers have stepped and some have not: save after all of them have")
        state["state"] = {}
        for optimizer in untouched:
            optimizer.state.clear()
    return state


@contextlib.contextmanager
def _hooks_disarmed(optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """torch initialises a fresh optimizer's state by a step with zero gradients: no hook of the user's may see it."""
    kept = []
    hooks: Any
    for optimizer in optimizers:
        for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
            kept.append((hooks, dict(hooks)))
            hooks.clear()
    try:
        yield
    finally:
        for hooks, content in kept:
            hooks.update(content)


# restoring


@dataclass(frozen=True)
class Restored:
    """What a checkpoint said beside tensors."""

    counters: dict[str, int]
    world_size: int


def check_architecture(app: Application, metadata: Metadata) -> None:
    """Raises ArchitectureMismatchError that names the first tensors that differ, with both shapes."""
    if app.model is None:
        return
    stored = shapes(metadata, "model.")
    live = get_model_state_dict(app.model)
    wanted = {name: tuple(value.size()) for name, value in live.items() if isinstance(value, torch.Tensor)}
    differences = [
        f"{name}: {_shape(stored.get(name))} in the checkpoint, {_shape(wanted.get(name))} in the model"
        for name in [*wanted, *(name for name in stored if name not in wanted)]
        if stored.get(name) != wanted.get(name)
    ]
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ArchitectureMismatchError(f"checkpoint of another architecture: {'; '.join(differences[:3])}{more}")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "scalar"


def template(app: Application, metadata: Metadata, common: Mapping[str, Any]) -> dict[str, Any]:
    """Where DCP is to load into: the live tensors where there are such, new ones for the rest."""
    names = metadata.state_dict_metadata
    state: dict[str, Any] = {}
    if app.model is not None:
        state["model"] = get_model_state_dict(app.model)
    if app.model is not None and any(name.startswith("optimizer.state.") for name in names) and app.optimizers:
        with _hooks_disarmed(app.optimizers):
            optimizer: dict[str, Any] = dict(get_optimizer_state_dict(app.model, list(app.optimizers)))
        optimizer["state"] = {
            parameter: values
            for parameter, values in optimizer["state"].items()
            if any(f"optimizer.state.{parameter}.{key}" in names for key in values)
        }
        optimizer["param_groups"] = _known_options(optimizer["param_groups"], names)
        state["optimizer"] = optimizer
    elif app.optimizers:
        groups = [_options(group) for each in app.optimizers for group in each.param_groups]
        state["optimizer"] = {"param_groups": _known_options(groups, names)}
    tensors = {}
    for path in _references(common.get("objects", {})):
        item = names.get(f"{OBJECTS}{path}")
        if not isinstance(item, TensorStorageMetadata):
            raise CheckpointCorruptError(f".metadata does not name {OBJECTS}{path}")
        tensors[path] = _live_tensor(app, path, item)
    if tensors:
        state["everstep"] = {"objects": tensors}
    return state


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _known_options(groups: Sequence[Mapping[str, Any]], names: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Without options that the checkpoint does not have, such as those of a newer optimizer."""
    return [
        {key: value for key, value in group.items() if f"optimizer.param_groups.{i}.{key}" in names}
        for i, group in enumerate(groups)
    ]


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if _REFERENCE in value:
            yield value[_REFERENCE]
            return
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)


def _live_tensor(app: Application, path: str, item: TensorStorageMetadata) -> torch.Tensor:
    """A tensor like the one that the object holds now (it may be sharded), else a new one on the CPU."""
    name = path.partition("/")[0]
    found: dict[str, torch.Tensor] = {}
    if name in app.others:
        _set_apart(accessors(app.others[name], name)[0](), name, found)
    live = found.get(path)
    if live is not None and live.size() == item.size and live.dtype == item.properties.dtype:
        return torch.empty_like(live)
    return torch.empty(item.size, dtype=item.properties.dtype)


def apply(
    app: Application,
    loaded: Mapping[str, Any],
    common: Mapping[str, Any],
    own: Mapping[str, Any] | None,
    step: int,
    gang: Gang,
) -> Restored:
    """Hand the loaded state to the objects; random numbers last, because handing over may draw some."""
    if app.model is not None:
        set_model_state_dict(app.model, loaded["model"])
    if app.model is not None and app.optimizers:
        _apply_optimizer(app.model, app.optimizers, loaded["optimizer"])
    if app.scheduler is not None:
        if "scheduler" not in common:
            raise InvalidOperationError("the checkpoint has no scheduler: it was saved without one")
        accessors(app.scheduler, "scheduler")[1](common["scheduler"])
    tensors = loaded.get("everstep", {}).get("objects", {})
    for name, item in sorted(app.others.items()):
        if name not in common["objects"]:
            has = sorted(common["objects"]) or "no such objects"
            raise InvalidOperationError(f"the checkpoint has no {name!r}; it has {has}")
        accessors(item, name)[1](_put_back(common["objects"][name], tensors))
    _apply_data(app, common, own, gang)
    if own is not None and common["world_size"] == gang.world_size:
        rng.restore(own["rng"])
    else:
        rng.reseed(gang.rank, step, gang.world_size)
    return Restored(dict(common["counters"]), common["world_size"])


def _apply_data(app: Application, common: Mapping[str, Any], own: Mapping[str, Any] | None, gang: Gang) -> None:
    if app.data is None:
        return
    if common["data_is_shared"]:
        state = common["data"]
    elif own is not None and common["world_size"] == gang.world_size:
        state = own["data"]
    else:
        raise InvalidOperationError(
            f"the data's state differed between the {common['world_size']} ranks that saved it, so it does not fit "
            f"{gang.world_size} ranks; make it a function of the global position to change the number of ranks"
        )
    if state is None:
        raise InvalidOperationError("the checkpoint has no data state: it was saved without data")
    accessors(app.data, "data")[1](state)


def _apply_optimizer(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], loaded: dict[str, Any]) -> None:
    if "state" not in loaded:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, options in zip(groups, loaded["param_groups"], strict=True):
            group.update({key: value for key, value in options.items() if key != "params"})
        return
    with _hooks_disarmed(optimizers):
        set_optimizer_state_dict(model, list(optimizers), loaded, options=StateDictOptions(strict=False))
