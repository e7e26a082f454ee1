"""A model's weights alone, out of a whole checkpoint: for evaluation, or as the start of another run."""

from __future__ import annotations

from torch import nn
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.state_dict import set_model_state_dict

from everstep.catalog import Manifest, ResumePoint, Store, open_store
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.restoring.loading import load_state
from everstep.checkpoint.restoring.matching import Configuration, check_tensors, mesh_of
from everstep.checkpoint.restoring.restoration import open_saved, told_apart, told_with_versions
from everstep.checkpoint.restoring.sources import find
from everstep.checkpoint.state.application import model_state


def load_weights(model: nn.Module, uri: str, step: int | None = None) -> Manifest:
    """Collective. Fill the parameters and persistent buffers of `model`, sharded in any way, and nothing else.

    `uri`: a checkpoint's own path, or a job's root and with it a `step` (None: its latest committed one). Nothing is
    claimed or changed there, and no byte of an optimizer is fetched. Raises CheckpointNotFoundError,
    CheckpointCorruptError (weights then hold anything), ArchitectureMismatchError (nothing was touched).
    """
    gang = Gang()
    try:
        root, point = gang.lead(lambda: find(uri, step))
        return fill(model, gang.everywhere(lambda: open_store(root)), point, gang)
    finally:
        gang.close()


def fill(model: nn.Module, store: Store, point: ResumePoint, gang: Gang, config_digest: str | None = None) -> Manifest:
    """`load_weights` of a checkpoint that was found."""
    with told_apart(store, point, gang):
        return _fill(model, store, point, gang, config_digest)


def _fill(model: nn.Module, store: Store, point: ResumePoint, gang: Gang, config_digest: str | None) -> Manifest:
    saved = open_saved(store, point, gang)
    state = gang.everywhere(lambda: {"model": model_state(model)})

    def check() -> None:
        live = Configuration(gang.world_size, mesh_of(model), config_digest)
        wanted = flatten_state_dict(state)[0]
        check_tensors(wanted, saved.metadata, Configuration.of(saved.manifest), live, whole="model.")

    gang.everywhere(check)
    with told_with_versions(saved.manifest):
        load_state(state, saved, gang)
    gang.everywhere(lambda: set_model_state_dict(model, state["model"]))
    return saved.manifest
