"""A model that was saved, exported, and loaded by transformers is the model that was saved."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from everstep import Checkpointer
from everstep.catalog import JobCatalog, open_store
from everstep.checkpoint.environment import JobEnvironment
from everstep.cli.app import app
from everstep.errors import CheckpointCorruptError, InvalidOperationError
from everstep.export import export
from everstep.export.huggingface import grouped
from everstep.export.saved import MODEL, SavedTensors
from everstep.weights.layout import Spec

LLAMA = LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)
TIED = GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=8)


def model_of(kind: str) -> Any:
    torch.manual_seed(3)
    if kind == "tied gpt2":
        return GPT2LMHeadModel(TIED)
    model: Any = LlamaForCausalLM(LLAMA)
    return model.to(torch.bfloat16 if kind == "llama in bf16" else torch.float32)


def save(model: Any, root: Path, **options: Any) -> JobCatalog:
    environment = JobEnvironment(root=str(root), heartbeat_seconds=60)
    with Checkpointer(model=model, environment=environment, **options) as checkpointer:
        checkpointer.begin(7)
        checkpointer.save_state()
        checkpointer.commit()
    return JobCatalog(open_store(str(root)))


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "80"})
    assert result.exit_code == code, result.output
    return result.output


def test_an_export_outlives_its_register(tmp_path: Path) -> None:
    """It holds the checkpoint where it can, and gives it back where it can; what it writes depends on neither."""
    job = save(torch.nn.Linear(2, 2), tmp_path / "run")
    entry = job.require().live()[0]

    def lose(_: int) -> None:
        shutil.rmtree(tmp_path / "run" / "catalog.d", ignore_errors=True)

    exported = export(job, entry, open_store(str(tmp_path / "first")), on_bytes=lose)
    assert job.read() is None
    assert export(job, entry, open_store(str(tmp_path / "second"))) == exported


def high_water() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="the mark is Linux's")
def test_a_tensor_is_held_once_while_it_is_exported(tmp_path: Path) -> None:
    size = 96 << 20
    job = save(torch.nn.Linear(size // 4 // 1024, 1024, bias=False), tmp_path / "run")
    entry = job.require().live()[0]
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts from what is held now
    before = high_water()
    exported = export(job, entry, open_store(str(tmp_path / "to")))
    assert exported.bytes > size
    assert high_water() - before < 1.5 * size


@pytest.mark.parametrize("kind", ["llama", "llama in bf16", "tied gpt2"])
@pytest.mark.parametrize("size", ["4kB", "1GiB"])
def test_from_pretrained_gives_the_live_weights_bit_for_bit(tmp_path: Path, kind: str, size: str) -> None:
    model = model_of(kind)
    save(model, tmp_path / "run", assets={"tokenizer_config.json": '{"model_max_length": 8}'})
    data = json.loads(run("export", f"{tmp_path}/run", "--to", f"{tmp_path}/hf", "--max-file-size", size, "-o", "json"))
    assert data["assets"] == ["config.json", "tokenizer_config.json"]
    names = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert len(names) > 3 if size == "4kB" else names == ["model.safetensors"]
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(loaded).__name__ == type(model).__name__
    live, found = model.state_dict(), loaded.state_dict()
    assert live.keys() == found.keys()
    for name, value in live.items():
        assert (found[name].dtype, torch.equal(found[name], value)) == (value.dtype, True), name
    if kind == "llama in bf16":
        return  # `to` has also rounded the rotary frequencies, which are no part of a state dict
    tokens = torch.arange(6).unsqueeze(0)
    assert torch.equal(model.eval()(input_ids=tokens).logits, loaded.eval()(input_ids=tokens).logits)


@pytest.mark.parametrize("kind", ["llama", "llama in bf16", "tied gpt2"])
def test_what_a_running_job_publishes_is_such_a_model_as_it_lies(tmp_path: Path, kind: str) -> None:
    model = model_of(kind)
    with Checkpointer(model=model, environment=JobEnvironment(root=str(tmp_path), heartbeat_seconds=60)) as job:
        job.publish_weights()
        (folder,) = (tmp_path / "weights").glob("step_*")
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
        assert loaded.state_dict()[name].dtype == value.dtype


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    job = save(model_of("llama"), tmp_path / "run")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "notes.txt").write_text("mine")
    with pytest.raises(InvalidOperationError, match="not empty"):
        run("export", f"{tmp_path}/run", "--to", f"{tmp_path}/hf")
    assert [path.name for path in (tmp_path / "hf").iterdir()] == ["notes.txt"]
    assert job.require().holds == ()


def test_a_flipped_byte_is_not_exported_and_what_is_there_is_no_model(tmp_path: Path) -> None:
    job = save(model_of("llama"), tmp_path / "run")
    entry = job.require().live()[-1]
    saved = SavedTensors(job.store, job.manifest(entry), MODEL)
    name = saved.specs()[-1].name
    piece = saved.pieces(name)[-1]
    path = tmp_path / "run" / entry.location / piece.file
    body = bytearray(path.read_bytes())
    body[piece.start + piece.length // 2] ^= 1
    path.write_bytes(body)
    with pytest.raises(CheckpointCorruptError, match="not those that were committed"):
        run("export", f"{tmp_path}/run", "--to", f"{tmp_path}/hf", "--max-file-size", "4kB")
    assert not (tmp_path / "hf" / "config.json").exists()


def test_the_checkpoint_is_held_while_it_is_read(tmp_path: Path) -> None:
    job = save(model_of("llama"), tmp_path / "run")
    held: list[int] = []

    def look(_: int) -> None:
        held.append(len([hold for hold in job.require().holds if hold.until > datetime.now(UTC)]))

    export(job, job.require().live()[0], open_store(f"{tmp_path}/hf"), on_bytes=look)
    assert set(held) == {1}
    assert job.require().holds == ()


def test_a_run_without_a_model_or_a_configuration_says_so(tmp_path: Path) -> None:
    plain = torch.nn.Linear(3, 2)
    save(plain, tmp_path / "plain")
    text = run("export", f"{tmp_path}/plain", "--to", f"{tmp_path}/hf")
    assert "kept no config.json" in " ".join(text.split())
    loaded = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    assert torch.equal(loaded["weight"], plain.weight)
    save(None, tmp_path / "none", generator=torch.Generator())
    with pytest.raises(InvalidOperationError, match="saved without a model"):
        run("export", f"{tmp_path}/none", "--to", f"{tmp_path}/nothing")


def test_files_keep_the_order_and_split_no_tensor() -> None:
    specs = [Spec(str(size), torch.uint8, (size,)) for size in (10, 50, 200, 60, 40, 1)]
    assert [[spec.nbytes for spec in group] for group in grouped(specs, 100)] == [[10, 50], [200], [60, 40], [1]]
