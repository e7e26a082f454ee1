"""What goes beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from everstep.errors import InvalidOperationError
from everstep.weights.assets import assets_of, tokenizer_files


def sharded(config: GPT2Config) -> Any:
    """Sharding gives the model a class of such a name."""
    return type("FSDPGPT2LMHeadModel", (GPT2LMHeadModel,), {})(config)


def test_a_transformers_model_brings_its_configuration() -> None:
    config = GPT2Config(vocab_size=8, n_embd=4, n_layer=1, n_head=1, n_positions=4)
    found = json.loads(assets_of(sharded(config), {})["config.json"])
    assert (found["model_type"], found["architectures"], found["n_embd"]) == ("gpt2", ["GPT2LMHeadModel"], 4)
    given = assets_of(sharded(config), {"config.json": "{}", "vocab.txt": b"a"})
    assert given == {"config.json": b"{}", "vocab.txt": b"a"}
    assert assets_of(torch.nn.Linear(1, 1), {}) == {}
    assert assets_of(None, {}) == {}


def test_a_name_that_everstep_uses_itself_is_refused() -> None:
    with pytest.raises(InvalidOperationError, match=r"'model\.safetensors' cannot be the name"):
        assets_of(None, {"model.safetensors": b""})


def test_a_tokenizers_files_are_known_by_their_names(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt", "model.bin", "secret.env"):
        (tmp_path / name).write_text(name)
    assert tokenizer_files(tmp_path) == {"tokenizer.json": b"tokenizer.json", "vocab.txt": b"vocab.txt"}
