"""TensorBoard events: written to local disk, stored beside the checkpoints whenever one is committed."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from everstep.catalog import Store
from everstep.catalog.keys import TENSORBOARD
from everstep.catalog.progress import rate
from everstep.checkpoint.checkpointer import Committed
from everstep.errors import CheckpointError

log = logging.getLogger("everstep")


class Board:
    """Event files of this process; each has a name of its own, so attempts do not overwrite each other's."""

    def __init__(self, store: Store) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._store = store
        self._folder = Path(tempfile.mkdtemp(prefix="everstep-tensorboard-"))
        self._writer = SummaryWriter(str(self._folder))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def committed(self, checkpoint: Committed) -> None:
        """What the save has cost, under `checkpoint/`; then all events are stored. Safe beside `add`."""
        times = checkpoint.times
        if times is not None:
            moving = times.staged_seconds + times.uploaded_seconds + times.committed_seconds
            rates = {
                "bytes_per_second": rate(times.bytes, moving),
                "staged_bytes_per_second": rate(times.bytes, times.staged_seconds),
                "uploaded_bytes_per_second": rate(times.bytes, times.uploaded_seconds),
            }
            self._add_all(checkpoint.step, "checkpoint", times.model_dump(exclude={"step"}) | rates)
        self.store()

    def resumed(self, checkpoint: Committed) -> None:
        """What the load has cost, under `restore/`."""
        times = checkpoint.load
        if times is not None:
            rates = {"bytes_per_second": rate(times.bytes, times.seconds)}
            self._add_all(checkpoint.step, "restore", times.model_dump(exclude={"step"}) | rates)

    def _add_all(self, step: int, below: str, values: Mapping[str, float]) -> None:
        self.add(step, {f"{below}/{name}": float(value) for name, value in values.items()})

    def store(self) -> None:
        """A board that cannot be stored costs a warning."""
        self._writer.flush()
        for path in sorted(self._folder.iterdir()):
            try:
                self._store.put(f"{TENSORBOARD}{path.name}", path.read_bytes())
            except CheckpointError as error:
                log.warning("tensorboard events were not stored: %s", error)

    def close(self) -> None:
        self._writer.close()
        shutil.rmtree(self._folder, ignore_errors=True)
