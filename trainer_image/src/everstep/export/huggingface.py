"""The model of a committed checkpoint as a folder for `from_pretrained`: consolidated safetensors, sharded by size.

Memory: one file of the export at a time, filled where its tensors lie. The configuration comes last, so
that a folder whose export was cut short is not taken for a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from everstep.catalog import Entry, JobCatalog, Store
from everstep.catalog.holding import held
from everstep.catalog.sums import block_sums
from everstep.errors import InvalidOperationError
from everstep.export.saved import MODEL, SavedTensors
from everstep.weights.assets import ASSETS, CONFIG
from everstep.weights.layout import INDEX, Layout, Spec, file_name, index_of

MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Exported:
    """`assets`: what was found beside the weights; without config.json the folder is no model yet."""

    step: int
    files: tuple[str, ...]
    bytes: int
    tensors: int
    assets: tuple[str, ...]


def export(
    job: JobCatalog,
    entry: Entry,
    to: Store,
    max_file_bytes: int = MAX_FILE_BYTES,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write the model of a committed checkpoint into the empty place `to`. The checkpoint is held meanwhile.

    Raises InvalidOperationError where something stands there already, or the checkpoint has no model;
    CheckpointCorruptError where a byte is not the one that was committed.
    """
    if next(iter(to.list("")), None) is not None:
        raise InvalidOperationError(f"{to.uri} is not empty: nothing is overwritten; name a new place")
    with held(job, entry, "export"):
        saved = SavedTensors(job.store, job.manifest(entry), MODEL)
        specs = saved.specs()
        if not specs:
            raise InvalidOperationError(f"step {entry.step} of {job.store.uri} was saved without a model")
        groups = grouped(specs, max_file_bytes)
        files, total = [], 0
        for number, group in enumerate(groups):
            body = _assemble(saved, group, on_bytes)
            files.append(file_name(number, len(groups)))
            to.put(files[-1], body, block_sums(body))
            total += len(body)
            del body
        if len(groups) > 1:
            to.put(INDEX, index_of(groups))
            files.append(INDEX)
        assets = dict(saved.assets(ASSETS))
        for name in sorted(assets, key=lambda name: name == CONFIG):
            to.put(name, assets[name])
    return Exported(entry.step, tuple(files), total, len(specs), tuple(sorted(assets)))


def grouped(specs: Sequence[Spec], most: int) -> list[list[Spec]]:
    """Files of at most about `most` bytes, in the model's order; a tensor is never split."""
    groups: list[list[Spec]] = []
    filled = 0
    for spec in specs:
        if not groups or (filled and filled + spec.nbytes > most):
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += spec.nbytes
    return groups


def _assemble(saved: SavedTensors, specs: Sequence[Spec], on_bytes: Callable[[int], None]) -> memoryview:
    layout = Layout(specs)
    buffer = torch.empty(layout.size, dtype=torch.uint8, device="cpu")
    layout.write_header(buffer)
    saved.read_into({spec.name: layout.place(buffer, spec.name) for spec in specs}, on_bytes)
    return buffer.numpy().data
