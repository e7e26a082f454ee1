"""A gang of two publishes into a real S3 server while another process watches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import safetensors.torch

from everstep.catalog import JobCatalog, Location, WeightSets
from everstep.catalog.verify import verify_save

from . import gang
from .conftest import Root

SCRIPT = str(Path(__file__).parent / "publishing.py")


def watching(root: Root, seconds: float) -> subprocess.Popen[str]:
    """A consumer that has begun to watch."""
    command = [sys.executable, SCRIPT, "watch", root.uri, str(seconds)]
    consumer = subprocess.Popen(command, env={**os.environ, **root.environment}, stdout=subprocess.PIPE, text=True)
    assert next_line(consumer) == "watching\n"
    return consumer


def next_line(consumer: subprocess.Popen[str]) -> str:
    assert consumer.stdout is not None
    return consumer.stdout.readline()


def seen_by(consumer: subprocess.Popen[str]) -> list[dict[str, Any]]:
    output, _ = consumer.communicate(timeout=120)
    assert consumer.returncode == 0
    return [json.loads(line) for line in output.splitlines()]


def places(sets: WeightSets) -> set[str]:
    """Where objects stand: the server still names folders that are empty."""
    return {info.key.rpartition("/")[0] for info in sets.store.list("weights/")}


def test_a_consumer_sees_whole_sets_alone_and_the_last_one(s3_root: Root, tmp_path: Path) -> None:
    consumer = watching(s3_root, 100)
    trained = gang.run(tmp_path, [SCRIPT, "train", "plain"], s3_root.uri, environment=s3_root.environment)
    seen = seen_by(consumer)
    assert [line["step"] for line in seen] == sorted({line["step"] for line in seen})
    assert seen[-1]["step"] == 8
    assert all(line["values"] == [float(line["step"])] for line in seen), seen
    sets = WeightSets(s3_root.store())
    live = sets.require().live()
    assert [entry.step for entry in live] == [7, 8]
    assert sets.require().removing == ()
    assert places(sets) == {entry.location for entry in live}
    manifest = sets.manifest(live[-1])
    verify_save(sets.store, manifest)
    names = {file.name for file in manifest.files}
    assert names == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    }
    index = json.loads(sets.store.get(Location.parse(live[-1].location).key("model.safetensors.index.json")))
    for name in sorted(names - {"model.safetensors.index.json"}):
        tensors = safetensors.torch.load(sets.store.get(Location.parse(live[-1].location).key(name)))
        assert set(tensors) == {key for key, file in index["weight_map"].items() if file == name}
    assert trained.log.count("published the weights of step") == 8
    assert [entry.step for entry in JobCatalog(s3_root.store()).require().live()] == [4, 8]


def test_of_a_set_whose_writer_dies_nothing_is_ever_seen(s3_root: Root, tmp_path: Path) -> None:
    dying = gang.start(tmp_path / "1", [SCRIPT, "train", "die-in-set"], s3_root.uri, environment=s3_root.environment)
    assert dying.wait() == 137
    sets = WeightSets(s3_root.store())
    assert sets.require().live()[-1].step == 4
    torn = [place for place in places(sets) if Location.parse(place).step == 5]
    assert len(torn) == 1, "half a set stands there"
    consumer = watching(s3_root, 100)
    first = json.loads(next_line(consumer))
    assert first == {"step": 4, "epoch": 1, "values": [4.0]}, "what the dead gang had published whole"
    gang.run(tmp_path / "2", [SCRIPT, "train", "plain"], s3_root.uri, environment=s3_root.environment)
    seen = seen_by(consumer)
    assert {line["epoch"] for line in seen} == {2}
    assert all(line["values"] == [float(line["step"])] for line in seen), seen
    assert seen[-1]["step"] == 8
    assert torn[0] not in places(sets), "it was swept"
