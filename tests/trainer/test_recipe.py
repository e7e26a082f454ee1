"""The recipe on real torchrun gangs."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from everstep.catalog import Best, Catalog, JobCatalog, Retention, WeightSets, open_store, read_heartbeat

from . import gang
from .conftest import Root


def newest(root: str | Path) -> Path:
    latest = JobCatalog(open_store(str(root))).require().latest()
    assert latest is not None
    return Path(root) / latest.location


def stock_load(folder: Path) -> dict[str, torch.Tensor]:
    """Everything of model and optimizer, by torch's own reader."""
    names = FileSystemReader(folder).read_metadata().state_dict_metadata
    state: dict[str, Any] = {
        name: torch.full(item.size, float("nan"), dtype=item.properties.dtype)
        for name, item in names.items()
        if isinstance(item, TensorStorageMetadata) and name.startswith(("model.", "optimizer.state."))
    }
    load(state, storage_reader=FileSystemReader(folder), no_dist=True)
    return state


def test_a_killed_run_resumes_bit_for_bit(s3_root: Root, straight: gang.Gang, tmp_path: Path) -> None:
    broken = gang.start(tmp_path / "first", gang.RECIPE, s3_root.uri, environment=s3_root.environment)
    broken.wait_for('"step": 7,')
    broken.wait_for("committed step 5: ")
    broken.kill()
    again = gang.run(tmp_path / "second", gang.RECIPE, s3_root.uri, environment=s3_root.environment)
    whole = straight.losses()
    assert broken.losses() == {step: loss for step, loss in whole.items() if step <= max(broken.losses())}
    first = min(again.losses())
    assert first in (6, 11, 16, 21)  # the last one committed before the kill
    assert again.losses() == {step: loss for step, loss in whole.items() if step >= first}
    assert again.samples() == {step: samples for step, samples in straight.samples().items() if step >= first}
    store = s3_root.store()
    catalog = JobCatalog(store).require()
    assert [entry.step for entry in catalog.live()] == [5, 10, 15, 20, 25, 30]
    latest = catalog.live()[-1]
    assert latest.score is not None
    assert any(True for _ in store.list("tensorboard/"))
    found = read_heartbeat(store, 2)
    assert isinstance(found, tuple)
    assert (found[0].phase, found[0].samples, found[0].resumed_step) == ("finished", 240, first - 1)

    downloaded = tmp_path / "downloaded"
    downloaded.mkdir()
    for info in store.list(f"{latest.location}/"):
        (downloaded / Path(info.key).name).write_bytes(store.get(info.key))
    ours, theirs = stock_load(downloaded), stock_load(newest(straight.folder / "root"))
    assert any(name.endswith("exp_avg_sq") for name in ours)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_flipped_byte_falls_back_on_all_ranks(straight: gang.Gang, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(straight.folder / "root", root)
    shard = newest(root) / "__1_0.distcp"
    body = bytearray(shard.read_bytes())
    body[len(body) // 3] ^= 4
    shard.write_bytes(body)
    again = gang.run(tmp_path, gang.RECIPE, str(root))
    assert again.losses() == {step: loss for step, loss in straight.losses().items() if step > 25}
    assert "step 30 is damaged" in again.log
    assert "are not those that were committed" in again.log
    states = {(entry.step, entry.state) for entry in JobCatalog(open_store(str(root))).require().checkpoints}
    assert {(30, "quarantined"), (30, "live")} <= states


def test_fewer_ranks_go_on_with_the_same_samples(straight: gang.Gang, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(straight.folder / "root", root)
    command = [*gang.RECIPE, "--steps", "33"]
    again = gang.run(tmp_path, command, str(root), ranks=1)
    assert "saved by 2 ranks, now 1" in again.log
    assert again.samples() == {31: [240, 248], 32: [248, 256], 33: [256, 264]}
    last = straight.lines()[-1]["loss"]
    assert all(abs(line["loss"] - last) < 0.5 for line in again.lines())


def test_another_architecture_ends_at_once_and_names_the_tensors(straight: gang.Gang, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(straight.folder / "root", root)
    misfit = gang.start(tmp_path, [*gang.RECIPE, "--model.hidden", "64"], str(root), options=["--max-restarts=3"])
    assert misfit.wait() == 78
    assert misfit.record is not None
    assert misfit.record.exception == "ArchitectureMismatchError"
    assert "transformer.wte.weight: 384x128 in the checkpoint, 384x64 in the model" in misfit.record.message
    assert misfit.log.count("checkpoint of another architecture: ") < 9  # no restarts in place


def test_sigterm_saves_one_step_on_all_ranks_and_ends_within_the_grace(tmp_path: Path) -> None:
    command = ["-m", "everstep.train", "--steps", "5000", "--evaluation.every", "0"]
    running = gang.start(tmp_path, command, str(tmp_path / "root"))
    running.wait_for('"step": 5,')
    running.process.send_signal(signal.SIGTERM)
    assert running.wait(seconds=25) == 143
    store = open_store(str(tmp_path / "root"))
    latest = JobCatalog(store).require().latest()
    assert latest is not None
    assert latest.step == max(running.losses())
    files = {file.name for file in JobCatalog(store).manifest(latest).files}
    shards = {file for file in files if file.endswith(".distcp")}
    assert {"__0_0.distcp", "__1_0.distcp"} <= shards
    assert files - shards == {".metadata", "assets/config.json"}
    assert running.record is not None
    assert (running.record.signal, running.record.step) == ("SIGTERM", latest.step)
    assert "which was saved" in running.record.message
    found = read_heartbeat(store, 1)
    assert isinstance(found, tuple)
    assert found[0].fatal == "SIGTERM"


def test_a_gang_that_stood_still_while_another_took_over_commits_nothing(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    old = gang.start(tmp_path / "old", [*gang.RECIPE, "--steps", "5000"], root)
    old.wait_for('"step": 7,')
    stopped = old.workers()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    gang.run(tmp_path / "new", [*gang.RECIPE, "--steps", "12"], root)
    before = JobCatalog(open_store(root)).require()
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    assert old.wait() == 76
    assert "fenced: " in old.log
    assert old.record is not None
    assert old.record.exception == "FencedError"
    assert JobCatalog(open_store(root)).require() == before


def test_text_of_ones_own_from_object_storage(s3_root: Root, tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"body": f"record {i} " + "text " * 50}) for i in range(200)).encode()
    store = open_store(s3_root.uri.rpartition("/")[0], s3_root.access)
    store.put("corpus/a.jsonl", lines)
    command = ["-m", "everstep.train", "--steps", "3", "--data.source", f"{store.uri}/corpus"]
    command += ["--data.text_field", "body"]
    ended = gang.run(tmp_path, command, str(tmp_path / "root"), ranks=1, environment=s3_root.environment)
    assert sorted(ended.losses()) == [1, 2, 3]


def test_flags_say_what_is_saved_kept_and_resumed(tmp_path: Path) -> None:
    tiny = ["-m", "everstep.train", "--data.max_bytes", "300000", "--model.layers", "1", "--model.hidden", "16"]
    tiny += ["--data.sequence", "32", "--evaluation.samples", "4", "--evaluation.every", "5", "--save_steps", "5"]

    def catalog(name: str) -> Catalog:
        return JobCatalog(open_store(str(tmp_path / name))).require()

    kept = ["--keep_last", "2", "--keep_best", "1", "--weights_steps", "10", "--save_async", "false"]
    first = gang.run(tmp_path / "1", [*tiny, "--steps", "20", *kept], str(tmp_path / "a"), ranks=1)
    assert [entry.step for entry in catalog("a").live()] == [15, 20]
    assert catalog("a").retention == Retention(last=2, best=Best(count=1))
    weights = WeightSets(open_store(str(tmp_path / "a"))).read()
    assert weights is not None
    assert [entry.step for entry in weights.live()] == [10, 20]
    longer = [*tiny, "--steps", "25", "--resume_step", "15"]
    again = gang.run(tmp_path / "2", longer, str(tmp_path / "a"), ranks=1)
    assert sorted(again.losses()) == list(range(16, 26))
    assert [entry.step for entry in catalog("a").live()] == [15, 20, 25]
    forked = [*tiny, "--steps", "30", "--resume", str(tmp_path / "a")]
    assert min(gang.run(tmp_path / "3", forked, str(tmp_path / "b"), ranks=1).losses()) == 26
    tuned = [*tiny, "--steps", "1", "--seed", "9", "--model.weights", str(tmp_path / "a")]
    lower = gang.run(tmp_path / "4", tuned, str(tmp_path / "c"), ranks=1).lines()[0]["loss"]
    assert lower < first.lines()[0]["loss"] - 0.05


def test_bad_configuration_is_refused_before_anything_starts(tmp_path: Path) -> None:
    refused = gang.start(tmp_path, ["-m", "everstep.train", "--model.heads", "3"], str(tmp_path / "root"), ranks=1)
    assert refused.wait() == 78
    assert refused.record is not None
    assert "heads (3) must divide hidden (128)" in refused.record.message
    assert not os.path.exists(tmp_path / "root")
