"""The live tensors of a model and its optimizers by name, as torch's state-dict functions give them, at a tenth of
their price.

torch looks each name up again through all modules, several times a call. Here the modules' and the optimizers' own
tables are read, anew at each call, and nothing is kept but a proof: what was read was once compared with what torch
gives, item by item. It holds as long as names, groups, kinds of state and what is trained are the same. For anything
that could put other values in their place (hooks, overridden methods, extra state, a fresh optimizer) torch is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import ActivationWrapper
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

Listing = dict[str, Any]
"""{state: {parameter: {…}}, param_groups: […]}, parameters by name."""


class _Unusual(Exception):
    """What only torch knows how to read."""


class Walk:
    """Of one model and its optimizers. Looks where training stands: in forward and backward FSDP puts other tensors in
    the parameters' places."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        ask: Callable[[torch.optim.Optimizer], Listing],
    ) -> None:
        """`ask`: torch's answer for an optimizer."""
        self.asked = 0
        """How often torch was."""
        self._model = model
        self._optimizers = tuple(optimizers)
        self._ask = ask
        self._kinds: dict[type[nn.Module], str | None] = {}
        self._proven: tuple[Any, ...] | None = None
        self._proven_of: dict[int, tuple[Any, ...]] = {}
        self._names: dict[int, str] | None = None

    def model(self) -> dict[str, Any]:
        """Parameters and persistent buffers; some are the parameters themselves, and not detached."""
        found: dict[str, Any] = {}
        names: dict[int, str] = {}
        try:
            self._visit(self._model, "", found, names)
        except _Unusual:
            return self._ask_for_model()
        seen = (tuple(found), tuple(names.values()))
        if seen != self._proven:
            theirs = self._ask_for_model()
            if not _proves(theirs, found):
                return theirs
            self._proven, self._proven_of = seen, {}
        self._names = names
        return found

    def _ask_for_model(self) -> dict[str, Any]:
        self._names, self._proven, self._proven_of = None, None, {}
        self.asked += 1
        return dict(get_model_state_dict(self._model))

    def optimizer(self, number: int) -> Listing:
        """After `model`, at the same boundary."""
        optimizer = self._optimizers[number]
        try:
            found, seen = self._list(optimizer)
        except _Unusual:
            return self._ask_for(optimizer)
        if self._proven_of.get(number) != seen:
            theirs = self._ask_for(optimizer)
            if not _proves(theirs, found):
                return theirs
            self._proven_of[number] = seen
        return found

    def _ask_for(self, optimizer: torch.optim.Optimizer) -> Listing:
        self.asked += 1
        return self._ask(optimizer)

    def _visit(self, module: nn.Module, prefix: str, found: dict[str, Any], names: dict[int, str]) -> None:
        """In the order in which `nn.Module.state_dict` goes, its hooks included: FSDP's puts the shards in place."""
        inner = self._inner(module)
        for hook in module._state_dict_pre_hooks.values():
            hook(module, prefix, False)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found[prefix + name] = parameter
                names.setdefault(id(parameter), prefix + name)
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                found[prefix + name] = buffer
        for name, child in module._modules.items():
            if child is not None:
                self._visit(child, prefix if name == inner else f"{prefix}{name}.", found, names)

    def _inner(self, module: nn.Module) -> str | None:
        kind = type(module)
        if kind not in self._kinds:
            if not _is_plain(kind):
                raise _Unusual
            self._kinds[kind] = _inner_of(kind)
        hooks = module._state_dict_hooks
        if hooks and any(hook is not ActivationWrapper._post_state_dict_hook for hook in hooks.values()):
            raise _Unusual
        own = module.__dict__
        if "state_dict" in own or "_save_to_state_dict" in own or "_fqn_modifiers" in own:
            raise _Unusual
        return self._kinds[kind]

    def _list(self, optimizer: torch.optim.Optimizer) -> tuple[Listing, tuple[Any, ...]]:
        """With what of it the proof depends on."""
        names = self._names
        if (
            names is None
            or not optimizer.state  # torch begins it
            or type(optimizer).state_dict is not torch.optim.Optimizer.state_dict
            or "state_dict" in optimizer.__dict__
            or optimizer._optimizer_state_dict_pre_hooks
            or optimizer._optimizer_state_dict_post_hooks
        ):
            raise _Unusual
        try:
            state = {names[id(parameter)]: values for parameter, values in optimizer.state.items()}
            groups = []
            trained = []
            for group in optimizer.param_groups:
                listed = {key: value for key, value in group.items() if key != "params"}
                listed["params"] = [names[id(parameter)] for parameter in group["params"]]
                groups.append(listed)
                trained.append([parameter.requires_grad for parameter in group["params"]])
            kinds = [(name, *values) for name, values in state.items()]
        except (KeyError, TypeError):
            raise _Unusual from None
        seen = (kinds, [(*group, *group["params"]) for group in groups], trained)
        return {"state": state, "param_groups": groups}, seen


def _is_plain(kind: type[nn.Module]) -> bool:
    """Whether its state is its parameters, buffers and modules, and nothing is done to them on the way."""
    return (
        kind.state_dict is nn.Module.state_dict
        and kind._save_to_state_dict is nn.Module._save_to_state_dict
        and kind.get_extra_state is nn.Module.get_extra_state
        and not hasattr(kind, "_fqn_modifiers")
    )


def _inner_of(kind: type[nn.Module]) -> str | None:
    """A module around one other calls it so, and nothing else is called by that name."""
    from torch._dynamo.eval_frame import OptimizedModule  # seconds, which torch takes at its first step

    wrappers = {
        OptimizedModule: "_orig_mod",
        DistributedDataParallel: "module",
        ActivationWrapper: "_checkpoint_wrapped_module",
    }
    return next((inner for wrapper, inner in wrappers.items() if issubclass(kind, wrapper)), None)


def _proves(theirs: Any, ours: Any) -> bool:
    try:
        return _same(ours, theirs)
    except Exception:  # noqa: BLE001 - tensors without memory, arrays: whatever cannot be compared is no proof
        return False


def _same(ours: Any, theirs: Any) -> bool:
    """Whether two trees hold the same tensors, in the same memory, and equal values of the same types."""
    if isinstance(ours, torch.Tensor):
        return isinstance(theirs, torch.Tensor) and _is_same_tensor(ours, theirs)
    if isinstance(ours, Mapping):
        return (
            isinstance(theirs, Mapping)
            and ours.keys() == theirs.keys()
            and all(_same(value, theirs[key]) for key, value in ours.items())
        )
    if isinstance(ours, list | tuple):
        return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return type(ours) is type(theirs) and (ours is theirs or bool(ours == theirs))


def _is_same_tensor(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    if isinstance(ours, DTensor) or isinstance(theirs, DTensor):
        return (
            isinstance(ours, DTensor)
            and isinstance(theirs, DTensor)
            and ours._spec == theirs._spec
            and _is_same_tensor(ours._local_tensor, theirs._local_tensor)
        )
    return (ours.dtype, ours.size(), ours.stride(), ours.layout, ours.device) == (
        theirs.dtype,
        theirs.size(),
        theirs.stride(),
        theirs.layout,
        theirs.device,
    ) and ours.data_ptr() == theirs.data_ptr()
