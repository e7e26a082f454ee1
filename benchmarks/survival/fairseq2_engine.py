"""fairseq2's checkpoint manager under the faults: its requests, and what it shows as the latest step."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dev.s3 import S3Endpoint
from tests.survival.matrix import Phase
from tests.survival.state import STARTS
from tests.survival.striker import Numbered, Seen

_FILE = re.compile(r"/step_(\d+)/(trainer|model|optimizer|data_reader)/(?:.*_)?(\d+)\.pt$")
_STEP = re.compile(r"/step_(\d+)/trainer/")
PHASES: frozenset[Phase] = frozenset(("staging", "part stored", "removal", "restore", "step saved again"))
"""On S3 it has no commit: a step is seen as soon as there is a file of its trainer's state."""


class Requests(Numbered):
    def __call__(self, method: str, path: str, body: bytes) -> Seen | None:
        key, _, query = path.partition("?")
        found = _FILE.search(key)
        phase: Phase | None = None
        if method == "POST" and query.startswith("delete"):
            phase = "removal" if b"/step_2/" in body else None
        elif found is not None and method == "GET":
            phase = "restore"
        elif found is not None and method == "PUT" and found[1] == "4" and found[2] in ("model", "optimizer"):
            phase = "part stored"
        rank = int(found[3]) if found is not None and method == "PUT" else None
        commits = method == "PUT" and found is not None and found[2] == "data_reader"
        return self.next(phase, rank, commits)


@dataclass(frozen=True)
class Fairseq2:
    """One root. `server` is straight."""

    bucket: str
    server: S3Endpoint
    variables: Mapping[str, str]

    name = "fairseq2"
    launcher = (sys.executable, "-m", "torch.distributed.run")
    script = str(Path(__file__).parent / "fairseq2_run.py")
    modules: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        return {"SURVIVAL_ROOT": f"s3://{self.bucket}/run"}

    def steps(self) -> list[int]:
        """Those that it shows, ascending."""
        return sorted({int(found[1]) for key in self._keys() if (found := _STEP.search(key))})

    def newest(self) -> int:
        return max(self.steps(), default=0)

    def problems(self) -> list[str]:
        found, keys = [], self._keys()
        for step in self.steps():
            shards = [
                key for key in keys if (match := _FILE.search(key)) and (match[1], match[2]) == (str(step), "model")
            ]
            if len(shards) < 2:
                found.append(f"step {step} is seen and has {len(shards)} of 2 shards of the model")
                continue
            bodies = [self.server.client().get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in shards]
            parts = [torch.load(io.BytesIO(body), weights_only=True)["stamp"] for body in bodies]
            stamps = sorted({int(value) for part in parts for value in part.tolist()})
            if len(stamps) > 1 or stamps[0] // STARTS != step:
                found.append(f"step {step} is torn: it has bytes of {stamps} (step * {STARTS} + start)")
        return found

    def _keys(self) -> list[str]:
        pages = self.server.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix="run/")
        return [item["Key"] for page in pages for item in page.get("Contents", [])]
