"""A training job's state as DCP items, and back.

model.*, optimizer.*     as `torch.distributed.checkpoint.state_dict` names them: stock tools find them
everstep.common          scheduler, data position, counters, other objects: one packed item, from rank 0
everstep.rank.{rank}     what each rank has of its own: one packed item a rank, so that nothing is deduplicated away
everstep.objects.*       tensors of other objects
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from everstep.checkpoint import collecting
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.state import objects, optimizers, plain, rng
from everstep.checkpoint.state.objects import accessors
from everstep.checkpoint.state.walk import Walk
from everstep.errors import CheckpointUnreadableError, InvalidOperationError, TornStateError

COMMON = "everstep.common"
RANK = "everstep.rank."
OBJECTS = "everstep.objects."
NAMES = "names of the model"


@dataclass(frozen=True)
class Torn:
    """Live tensors may hold a part of `source`."""

    source: str
    names: frozenset[str] | None
    """Of the model's tensors that may; None: any, the optimizers' too."""
    final: bool = False
    """Somebody may write into them yet: the load was left by whoever was told to stop."""


@dataclass
class Application:
    """The objects whose state is kept. `others` by the names that the user gave them."""

    model: nn.Module | None = None
    optimizers: tuple[torch.optim.Optimizer, ...] = ()
    scheduler: Any = None
    data: Any = None
    others: dict[str, Any] = field(default_factory=dict)
    config_digest: str | None = None
    """Of the configuration that the model was built by, for messages."""
    walk: Walk | None = field(init=False, default=None)
    torn: Torn | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.optimizers and self.model is None:
            raise InvalidOperationError("an optimizer is kept together with its model: pass model= too")
        optimizers.check_kept(self.optimizers)
        if self.model is not None:
            self.walk = optimizers.walk(self.model, self.optimizers)
        self.others = {name: item for name, item in sorted(self.others.items()) if item is not None}
        for name, item in (("scheduler", self.scheduler), ("data", self.data), *self.others.items()):
            if item is not None:
                accessors(item, name)

    @contextlib.contextmanager
    def filling(self, source: str, names: Iterable[str] | None = None) -> Iterator[None]:
        """While bytes of `source` go into live tensors: those of the model with these names, or all. Where that fails
        nothing is saved until as much is filled anew."""
        before, filled = self.torn, None if names is None else frozenset(names)
        torn, final = (frozenset[str](), False) if before is None else (before.names, before.final)
        self.torn = Torn(source, None if filled is None or torn is None else filled | torn, final)
        try:
            yield
        except Exception:
            raise
        except BaseException:
            self.torn = Torn(source, None, final=True)
            raise
        self.torn = _left(before, filled)

    def check_whole(self) -> None:
        """Raises TornStateError where live tensors may hold a part of what could not be loaded."""
        if self.torn is not None:
            heal = "start again" if self.torn.final else "load a step, or make a new Checkpointer of what is whole"
            what = "state" if self.torn.names is None else "model"
            raise TornStateError(
                f"the {what} may hold a part of {self.torn.source}, which could not be loaded to its end: nothing is "
                f"saved; {heal}"
            )


def _left(torn: Torn | None, filled: frozenset[str] | None) -> Torn | None:
    """What is still torn once so much was filled."""
    if torn is None or torn.final:
        return torn
    if filled is None:
        return None
    if torn.names is None:
        return torn
    left = torn.names - filled
    return replace(torn, names=left) if left else None


# saving


@dataclass(frozen=True)
class Seen:
    """What one rank has at a boundary: live tensors, and values as they were."""

    model: dict[str, Any]
    data: Any
    trees: dict[str, Any]
    buffers: dict[str, torch.Tensor]
    digests: dict[str, bytes]
    """Of what may be the same on all ranks; none where there is only one."""


def look(app: Application, gang: Gang) -> Seen:
    """Not collective: one rank may fail here. Raises TornStateError."""
    app.check_whole()
    model = {} if app.walk is None else app.walk.model()
    for name, value in model.items():
        if isinstance(value, torch.Tensor):
            objects.check_storable(name, value)
    data = None if app.data is None else plain.to_plain(objects.state_of(app.data, "data"), "data")
    trees = {name: objects.state_of(item, name) for name, item in app.others.items()}
    buffers = {} if app.model is None else objects.unsharded_buffers(app.model, model)
    digests: dict[str, bytes] = {}
    if gang.world_size > 1:
        digests[NAMES] = hashlib.sha256("\n".join(sorted(model)).encode()).digest()
        digests["data"] = hashlib.sha256(plain.pack(data, "data").numpy().tobytes()).digest()
        digests |= {f"objects/{name}": objects.digest(tree, name) for name, tree in trees.items()}
        digests |= {f"buffers/{name}": objects.digest(buffer, name) for name, buffer in buffers.items()}
    return Seen(model, data, trees, buffers, digests)


def check_alike(apart: Set[str]) -> None:
    """`apart`: what `differing` found, the same on all ranks. Raises InvalidOperationError."""
    if NAMES in apart:
        raise InvalidOperationError(
            "the ranks' models have tensors of different names, as the stages of a pipeline have: no rank could load "
            "that again. Sharded, replicated and tensor-parallel models have all names on all ranks"
        )


def differing(digests: Sequence[Mapping[str, bytes]]) -> frozenset[str]:
    """`digests`: by rank. What of it each rank has its own of."""
    names = set().union(*digests)
    return frozenset(name for name in names if len({found.get(name) for found in digests}) > 1)


def compose(app: Application, gang: Gang, counters: Mapping[str, int], seen: Seen, apart: Set[str]) -> dict[str, Any]:
    """A nested state dict for DCP whose tensors are the live ones, not copies. Not collective. `apart`: what differs
    between the ranks."""
    shared = "data" not in apart
    own: dict[str, Any] = {"rng": rng.capture()}
    common: dict[str, Any] = {
        "format": 1,
        "world_size": gang.world_size,
        "counters": dict(counters),
        "data_is_shared": shared,
    }
    (common if shared else own)["data"] = seen.data
    if app.scheduler is not None:
        common["scheduler"] = objects.state_of(app.scheduler, "scheduler")
    own["buffers"] = {name: tensor for name, tensor in seen.buffers.items() if f"buffers/{name}" in apart}
    tensors: objects.Tensors = {}
    common["objects"], own["objects"] = {}, {}
    for name, tree in seen.trees.items():
        differs = f"objects/{name}" in apart
        (own if differs else common)["objects"][name] = objects.set_apart(tree, name, tensors, only_sharded=differs)
    common["names"] = sorted(seen.trees)
    state: dict[str, Any] = {
        "everstep": {
            "rank": {str(gang.rank): plain.pack(own, "state of this rank")},
            "objects": tensors,
        }
    }
    if gang.leads:
        state["everstep"]["common"] = plain.pack(common, "state")
    if app.model is not None:
        state["model"] = plain.leaves(seen.model, "model")
    if app.walk is not None and app.optimizers:
        state["optimizer"] = plain.leaves(optimizers.capture(app.walk, app.optimizers), "optimizer")
    return state


# restoring


@dataclass(frozen=True)
class Restored:
    """What a checkpoint said beside tensors."""

    counters: dict[str, int]
    world_size: int


def model_state(model: nn.Module) -> dict[str, Any]:
    """The live tensors of a model by their names, parameters and persistent buffers."""
    return dict(get_model_state_dict(model))


def check_fits(app: Application, common: Mapping[str, Any], own: Mapping[str, Any] | None, gang: Gang) -> None:
    """That the checkpoint has what each object needs, and in a form that fits this number of ranks.

    Raises InvalidOperationError. `own`: None where the number of ranks has changed.
    """
    if app.scheduler is not None and "scheduler" not in common:
        raise InvalidOperationError("the checkpoint has no scheduler: it was saved without one")
    for name in app.others:
        _tree(name, common, own, gang)
    if app.data is not None:
        _data(common, own, gang)


def template(
    app: Application,
    metadata: Metadata,
    common: Mapping[str, Any],
    own: Mapping[str, Any] | None,
    model: dict[str, Any],
) -> dict[str, Any]:
    """Where DCP is to load into: the live tensors where there are such, new ones for the rest. `model`: its
    `model_state`."""
    state: dict[str, Any] = {}
    if app.model is not None:
        state["model"] = model
    if app.model is not None and app.optimizers:
        state["optimizer"] = optimizers.template(app.model, app.optimizers, metadata)
    tensors = {}
    live: dict[str, objects.Tensors] = {}
    for trees in (common.get("objects", {}), {} if own is None else own.get("objects", {})):
        for path in objects.references({name: tree for name, tree in trees.items() if name in app.others}):
            item = metadata.state_dict_metadata.get(f"{OBJECTS}{path}")
            if not isinstance(item, TensorStorageMetadata):
                raise CheckpointUnreadableError(f".metadata does not name {OBJECTS}{path}")
            tensors[path] = _live_tensor(app, path, item, live)
    if tensors:
        state["everstep"] = {"objects": tensors}
    return state


def _live_tensor(
    app: Application, path: str, item: TensorStorageMetadata, asked: dict[str, objects.Tensors]
) -> torch.Tensor:
    """A tensor like the one that the object holds now (it may be sharded), else a new one on the CPU.

    `asked`: what each object holds, which is asked for once.
    """
    name = path.partition("/")[0]
    if name in app.others and name not in asked:
        asked[name] = {}
        objects.set_apart(accessors(app.others[name], name)[0](), name, asked[name])
    live = asked.get(name, {}).get(path)
    if live is not None and live.size() == item.size and live.dtype == item.properties.dtype:
        return torch.empty_like(live)
    return torch.empty(item.size, dtype=item.properties.dtype, device="cpu")


@collecting.paused()
def apply(
    app: Application,
    loaded: Mapping[str, Any],
    common: Mapping[str, Any],
    own: Mapping[str, Any] | None,
    step: int,
    gang: Gang,
) -> Restored:
    """Hand the loaded state to the objects; random numbers last, because handing over may draw some.

    `own`: None where the number of ranks has changed.
    """
    if app.model is not None:
        set_model_state_dict(app.model, loaded["model"])
        if own is not None:
            _apply_buffers(app.model, own["buffers"])
    if app.model is not None and app.optimizers:
        optimizers.apply(app.model, app.optimizers, loaded["optimizer"])
    if app.scheduler is not None:
        accessors(app.scheduler, "scheduler")[1](common["scheduler"])
    tensors = loaded.get("everstep", {}).get("objects", {})
    for name, item in app.others.items():
        accessors(item, name)[1](objects.put_back(_tree(name, common, own, gang), tensors))
    if app.data is not None:
        accessors(app.data, "data")[1](_data(common, own, gang))
    if own is not None:
        rng.restore(own["rng"])
    else:
        rng.reseed(gang.rank, step, gang.world_size)
    return Restored(dict(common["counters"]), common["world_size"])


def _apply_buffers(model: nn.Module, buffers: Mapping[str, torch.Tensor]) -> None:
    live = get_model_state_dict(model)
    for name, value in buffers.items():
        target = live[name]
        if not isinstance(target, torch.Tensor):
            raise CheckpointUnreadableError(f"{name} is a buffer in the checkpoint and none in the model")
        target.copy_(value)


def _tree(name: str, common: Mapping[str, Any], own: Mapping[str, Any] | None, gang: Gang) -> Any:
    if name in common["objects"]:
        return common["objects"][name]
    if own is not None and name in own["objects"]:
        return own["objects"][name]
    if name not in common["names"]:
        raise InvalidOperationError(
            f"the checkpoint has no {name!r}; it has {common['names'] or 'no such objects'}: it was saved without"
        )
    raise InvalidOperationError(
        f"the state of {name!r} differed between the {common['world_size']} ranks that saved it, so it does not fit "
        f"{gang.world_size} ranks"
    )


def _data(common: Mapping[str, Any], own: Mapping[str, Any] | None, gang: Gang) -> Any:
    if common["data_is_shared"]:
        state = common["data"]
    elif own is not None:
        state = own["data"]
    else:
        raise InvalidOperationError(
            f"the data's state differed between the {common['world_size']} ranks that saved it, so it does not fit "
            f"{gang.world_size} ranks; make it a function of the global position to change the number of ranks"
        )
    if state is None:
        raise InvalidOperationError("the checkpoint has no data state: it was saved without data")
    return state
