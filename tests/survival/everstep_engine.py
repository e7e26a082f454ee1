"""everstep under the faults: how it is started, what its requests are, and what has to be true afterwards."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from everstep.catalog import JobCatalog, S3Access, Store, open_store
from everstep.catalog.verify import verify_save
from everstep.cli.runs import find_runs
from everstep.errors import CheckpointError
from tests.survival.matrix import Phase
from tests.survival.striker import Numbered, Seen

SCRIPT = str(Path(__file__).parent / "everstep_run.py")
KEPT = [6, 8]
_STEP = re.compile(r"step_(\d{12})-")
_SHARD = re.compile(r"/__(\d+)_\d+\.distcp")


class Requests(Numbered):
    """Names the requests of one gang, from its start."""

    def __init__(self) -> None:
        super().__init__()
        self._manifest = 0

    def __call__(self, method: str, path: str, body: bytes) -> Seen | None:
        key, _, query = path.partition("?")
        found = _STEP.search(key)
        step = int(found[1]) if found else None
        commits = method == "PUT" and key.endswith("/catalog.json") and self._manifest > 0
        phase = self._phase(method, key.rpartition("/")[2], query, step, body)
        if method == "PUT" and key.endswith("/manifest.json"):
            self._manifest = step or 0
        shard = _SHARD.search(key)
        rank = 0 if shard is None else int(shard[1]) if method != "GET" else None  # who reads a range, no path tells
        return self.next(phase, rank, commits)

    def _phase(self, method: str, name: str, query: str, step: int | None, body: bytes) -> Phase | None:
        if method == "PUT" and name == "catalog.json":
            return "swap sent" if self._manifest == 4 else None
        if method == "POST" and query.startswith("delete"):
            return "removal" if b"step_000000000002-" in body else None
        if method == "GET" and name.endswith(".distcp"):
            return "restore"
        if step != 4:
            return None
        if method == "POST":
            return "upload completing" if "uploadId=" in query else "upload begun"
        if method != "PUT":
            return None
        if "partNumber=" in query:
            return "part stored"
        named: dict[str, Phase] = {".metadata": "metadata", "manifest.json": "manifest", "COMMITTED": "mark"}
        return named.get(name)


@dataclass(frozen=True)
class Everstep:
    """One root. `access` is straight to the server, past everything that strikes."""

    uri: str
    access: S3Access

    name = "everstep"
    launcher = (sys.executable, "-m", "everstep.launch", "torchrun")
    script = SCRIPT
    modules = ("everstep.checkpoint", "everstep.transfer")

    def environment(self) -> dict[str, str]:
        policy = {"interval": {"steps": 2}, "keepLast": 2}
        return {
            "EVERSTEP_ROOT": self.uri,
            "EVERSTEP_POLICY": json.dumps(policy),
            "EVERSTEP_HEARTBEAT_SECONDS": "5",
        }

    @property
    def store(self) -> Store:
        return open_store(self.uri, self.access)

    def newest(self) -> int:
        """The latest committed step, 0 for none."""
        latest = JobCatalog(self.store).require().latest()
        return 0 if latest is None else latest.step

    def problems(self) -> list[str]:
        """What is wrong once a run has ended well: what is committed, what is listed, and what is left over."""
        found = []
        catalog = JobCatalog(self.store)
        register = catalog.require()
        steps = [entry.step for entry in register.live()]
        if steps != KEPT:
            found.append(f"committed are {steps}, not {KEPT}")
        for entry in register.live():
            try:
                verify_save(self.store, catalog.manifest(entry))
            except CheckpointError as error:
                found.append(f"step {entry.step} does not verify: {error}")
        listed = [row.step for row in find_runs(self.uri, self.access)[0].rows if row.status == "complete"]
        if listed != steps:
            found.append(f"`everstep ls` shows {listed} as complete")
        older = self.unfinished(below=register.epoch)
        if older:
            found.append(f"unfinished uploads of older epochs: {older}")
        return found + self._left_over()

    def _left_over(self) -> list[str]:
        """After the next sweep, which the next worker group's first commit makes."""
        catalog = JobCatalog(self.store)
        catalog.claim()
        catalog.finish_removals()
        catalog.sweep()
        found = self.unfinished()
        register = catalog.require()
        named = {entry.location for entry in register.checkpoints}
        folders = {info.key.rpartition("/")[0] for info in self.store.list("checkpoints/")}
        strange = sorted(folder for folder in folders if not any(folder.startswith(location) for location in named))
        return [
            *([f"unfinished uploads after the sweep: {found}"] if found else []),
            *([f"nothing names {strange}, and the sweep left it"] if strange else []),
        ]

    def unfinished(self, below: int | None = None) -> list[str]:
        """Keys of uploads that were begun and neither completed nor aborted; of epochs below one."""
        keys: list[str] = []

        def look(key: str) -> bool:
            epoch = re.search(r"step_\d{12}-(\d{6})", key)
            if below is None or (epoch is not None and int(epoch[1]) < below):
                keys.append(key)
            return False

        self.store.abort_uploads("checkpoints/", datetime.now(UTC) - timedelta(days=1), look)
        return keys
