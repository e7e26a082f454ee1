"""Any layout to any other, bit for bit, and no byte fetched twice."""

from __future__ import annotations

import json
from pathlib import Path

from everstep.catalog.manifest import BLOCK

from . import gang

SCRIPT = str(Path(__file__).parent / "reshard.py")


def test_any_layout_loads_into_any_other_and_every_byte_is_fetched_once(tmp_path: Path) -> None:
    (tmp_path / "roots").mkdir()
    ended = gang.start(tmp_path, [SCRIPT, str(tmp_path)], str(tmp_path / "roots"), ranks=4)
    assert ended.wait(280) == 0, ended.log[-4000:]  # nineteen gangs, one after the other
    lines = [json.loads(line) for line in ended.log.splitlines() if line.startswith('{"from"')]
    assert [(line["from"], line["to"]) for line in lines] == [
        ("fsdp-2", "fsdp-1"),
        ("fsdp-2", "fsdp-2"),
        ("fsdp-2", "fsdp-4"),
        ("fsdp-2", "hsdp-4"),
        ("fsdp-2", "tensor_parallel-4"),
        ("fsdp-2", "plain-2"),
        ("fsdp-1", "fsdp-2"),
        ("plain-2", "fsdp-4"),
        ("hsdp-4", "hsdp-4"),
        ("hsdp-4", "fsdp-2"),
        ("tensor_parallel-4", "fsdp-2"),
        ("tensor_parallel-4", "fsdp-1"),
        ("tensor_parallel-4", "tensor_parallel-4"),
    ]
    for line in lines:
        before = (1 + len(line["fetched"])) * BLOCK  # counters, and random numbers of each rank: read before the rest
        assert sum(line["fetched"]) <= line["needed"] * 1.02 + before, line
        if line["to"].startswith(("hsdp", "plain")):
            assert min(line["fetched"]) > 0.6 * max(line["fetched"]), "replicas fetch in turns"
    assert "failures met by all" in ended.log
