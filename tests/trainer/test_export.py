"""What a gang of two has trained, exported from its shards, is what stock readers find there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from everstep.catalog import JobCatalog, open_store
from everstep.cli.app import app

from . import gang

FEW = ("-m", "everstep.train", "--steps", "3", "--save_steps", "3", "--model.family", "gpt2", "--evaluation.every", "0")


def test_the_recipes_model_exported_is_what_dcp_loads(tmp_path: Path) -> None:
    root = tmp_path / "root"
    gang.run(tmp_path, [*FEW, "--data.max_bytes", "1000000"], str(root))
    arguments = ["export", str(root), "--to", str(tmp_path / "hf"), "--max-file-size", "2MB", "-o", "json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert json.loads(result.stdout)["assets"] == ["config.json"]
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    latest = JobCatalog(open_store(str(root))).require().latest()
    assert latest is not None
    stock = {"model": {name: torch.empty_like(value) for name, value in loaded.state_dict().items()}}
    load(stock, storage_reader=FileSystemReader(root / latest.location), no_dist=True)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, stock["model"][name]), name
