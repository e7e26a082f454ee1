"""torch.distributed.checkpoint alone under the faults: how it is started, what its requests are, what is whole."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict_loader import load

from benchmarks.survival.s3_steps import S3Steps
from tests.survival.matrix import Phase
from tests.survival.state import STAMPS, STARTS
from tests.survival.striker import Numbered, Seen

_FILE = re.compile(r"/step-(\d+)/(?:__(\d+)_\d+\.distcp|(\.metadata(?:\.tmp)?))$")
PHASES: frozenset[Phase] = frozenset(
    (
        *("staging", "upload begun", "part stored", "upload completing", "metadata"),
        *("swap sent", "swap unanswered", "removal", "restore", "step saved again"),
    )
)
"""Those that it has. Its swap is the copy of `.metadata.tmp` to `.metadata`: from then on the step is seen."""


class Requests(Numbered):
    def __call__(self, method: str, path: str, body: bytes) -> Seen | None:
        key, _, query = path.partition("?")
        found = _FILE.search(key)
        commits = method == "PUT" and key.endswith("/.metadata")
        if method == "POST" and query.startswith("delete"):
            phase: Phase | None = "removal" if b"/step-2/" in body else None
        elif found is None:
            return None
        else:
            phase = self._phase(method, query, found)
        shard = None if found is None else found[2]
        rank = None if method == "GET" else int(shard or 0)
        return self.next(phase, rank, commits)

    def _phase(self, method: str, query: str, found: re.Match[str]) -> Phase | None:
        step, shard, metadata = found[1], found[2] is not None, found[3]
        if method == "GET" and shard:
            return "restore"
        if step != "4":
            return None
        if metadata is not None:
            whole = method == "PUT" and "partNumber" not in query
            if metadata == ".metadata":
                return "swap sent" if whole else None
            return "metadata" if method == "PUT" else None
        if method == "POST":
            return "upload completing" if "uploadId=" in query else "upload begun"
        return "part stored" if method == "PUT" else None


@dataclass(frozen=True)
class Dcp:
    """One root. `endpoint` is straight to the server."""

    uri: str
    endpoint: str
    variables: Mapping[str, str]
    beside: bool = False

    launcher = (sys.executable, "-m", "torch.distributed.run")
    script = str(Path(__file__).parent / "dcp_run.py")
    modules = ("benchmarks.survival.s3_steps",)

    @property
    def name(self) -> str:
        return "DCP async" if self.beside else "DCP sync"

    def environment(self) -> dict[str, str]:
        return {"SURVIVAL_ROOT": self.uri, "SURVIVAL_ASYNC": str(int(self.beside))}

    @property
    def steps(self) -> S3Steps:
        return S3Steps(self.uri, self.endpoint)

    def newest(self) -> int:
        with credentials(self.variables):
            return self.steps.latest()

    def problems(self) -> list[str]:
        """Steps that are seen and are of two saves, or cannot be read."""
        found = []
        with credentials(self.variables):
            for step in self.steps.whole():
                stamp = torch.full((STAMPS,), -1.0)
                try:
                    load({"app": {"model": {"stamp": stamp}}}, storage_reader=self.steps.reader(step), no_dist=True)
                except BaseException as error:  # noqa: BLE001 - CheckpointException is no Exception
                    found.append(f"step {step} is seen and cannot be read: {error}"[:500])
                    continue
                stamps = sorted({int(value) for value in stamp.tolist()})
                if len(stamps) > 1 or stamps[0] // STARTS != step:
                    found.append(f"step {step} is torn: it has bytes of {stamps} (step * {STARTS} + start)")
        return found


@contextmanager
def credentials(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
