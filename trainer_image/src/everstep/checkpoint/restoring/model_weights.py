"""A model's weights alone, out of a whole checkpoint: for evaluation, or as the start of another run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from everstep.catalog import Entry, Manifest, Store, open_store
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.restoring.loading import load_state
from everstep.checkpoint.restoring.matching import SHOWN, Configuration, check_tensors, mesh_of
from everstep.checkpoint.restoring.restoration import open_saved, reading, told_with_versions
from everstep.checkpoint.restoring.sources import find
from everstep.checkpoint.state.application import Application, model_state
from everstep.errors import ArchitectureMismatchError

log = logging.getLogger("everstep")

_MODEL = "model."


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """What was loaded. `missing`: what the model has and the checkpoint has not, which is as it was; `unexpected`: what
    the checkpoint has besides. Both are empty unless asked for with `strict=False`."""

    manifest: Manifest
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        return self.manifest.step


def load_weights(model: nn.Module, uri: str, step: int | None = None, strict: bool = True) -> LoadedWeights:
    """Collective. Fill the parameters and persistent buffers of `model`, sharded in any way, and nothing else.

    `uri`: a checkpoint's own path, or a job's root and with it a `step` (None: its latest committed one). `strict`:
    model and checkpoint must have the same names; else those are loaded that both have, in the same shapes and types.
    Nothing is claimed there, it is only held while it is read, and no byte of an optimizer is fetched. Raises
    CheckpointNotFoundError, CheckpointCorruptError (weights then hold anything), ArchitectureMismatchError (nothing was
    touched).
    """
    gang = Gang()
    try:
        root, entry = gang.lead(lambda: find(uri, step))
        return fill(Application(model), gang.everywhere(lambda: open_store(root)), entry, gang, strict)
    finally:
        gang.close()


def fill(app: Application, store: Store, entry: Entry, gang: Gang, strict: bool = True) -> LoadedWeights:
    """`load_weights` of a checkpoint that was found, into the model of `app`."""
    model = app.model
    assert model is not None
    with reading(store, entry, gang) as point:
        saved = open_saved(store, point, gang)

        def match() -> tuple[dict[str, Any], LoadedWeights]:
            state = model_state(model)
            found = LoadedWeights(saved.manifest) if strict else _compared(state, saved.metadata, saved.manifest)
            state = {name: value for name, value in state.items() if name not in found.missing}
            live = Configuration(gang.world_size, mesh_of(model), app.config_digest)
            flat = flatten_state_dict({"model": state})[0]
            whole = _MODEL if strict else None
            check_tensors(flat, saved.metadata, Configuration.of(saved.manifest), live, whole)
            return state, found

        state, found = gang.everywhere(match)
        source = f"the weights of step {saved.manifest.step} ({saved.location})"
        with told_with_versions(saved.manifest), app.filling(source, state):
            load_state({"model": state}, saved, gang)
            gang.everywhere(lambda: set_model_state_dict(model, state, options=StateDictOptions(strict=strict)))
    if gang.leads and (found.missing or found.unexpected):
        log.warning(
            "weights of step %d: not in the checkpoint, and as they were: %s; only in the checkpoint: %s",
            *(found.step, _listed(found.missing), _listed(found.unexpected)),
        )
    return found


def _compared(state: Mapping[str, Any], metadata: Metadata, manifest: Manifest) -> LoadedWeights:
    """Raises ArchitectureMismatchError where the two have nothing in common."""
    stored = metadata.state_dict_metadata
    names = {name: list(flatten_state_dict({"model": {name: value}})[0]) for name, value in state.items()}
    missing = tuple(name for name, flat in names.items() if any(each not in stored for each in flat))
    known = {each for flat in names.values() for each in flat}
    tensors = (name for name, item in stored.items() if isinstance(item, TensorStorageMetadata))
    unexpected = tuple(n.removeprefix(_MODEL) for n in tensors if n.startswith(_MODEL) and n not in known)
    if len(missing) == len(names):
        raise ArchitectureMismatchError(
            f"nothing of the model is in the checkpoint: it has {_listed(unexpected)}, the model {_listed(missing)}"
        )
    return LoadedWeights(manifest, missing, unexpected)


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "nothing"
