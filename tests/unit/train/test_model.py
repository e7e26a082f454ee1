from __future__ import annotations

from pathlib import Path

import pytest
import torch

from everstep.errors import InvalidOperationError
from everstep.train.config import DataConfig, ModelConfig
from everstep.train.model import blocks, build, loss_of
from everstep.train.recipe import tokenizer


@pytest.fixture(params=["llama", "gpt2"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    if request.param == "llama":
        llama = LlamaConfig(
            vocab_size=384, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64,
        )  # fmt: skip
        LlamaForCausalLM(llama).save_pretrained(tmp_path)
    else:  # its embedding is also its head
        gpt2 = GPT2Config(vocab_size=384, n_embd=16, n_layer=3, n_head=4, n_positions=64)
        GPT2LMHeadModel(gpt2).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    return tmp_path


def test_weights_from_a_folder_are_those_that_stand_there(stored: Path) -> None:
    from safetensors.torch import load_file

    model = build(ModelConfig(path=stored), 384, 64)
    live = model.state_dict()
    kept = load_file(stored / "model.safetensors")
    assert kept
    assert all(torch.equal(live[name], value) for name, value in kept.items())
    assert len(blocks(model)) == 3
    assert model.training
    loss = loss_of(model, torch.randint(0, 384, (2, 17)))
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_that_does_not_fit_is_named(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidOperationError, match=r"data\.tokenizer: it has 385 tokens, the model in .* knows 384"):
        build(ModelConfig(path=stored), 385, 64)
    with pytest.raises(InvalidOperationError, match=r"data\.sequence: 65 tokens, .* takes 64 at most"):
        build(ModelConfig(path=stored), 384, 65)
    with pytest.raises(InvalidOperationError, match=r"model\.path: .* has no config\.json"):
        build(ModelConfig(path=tmp_path / "nowhere"), 384, 64)
    (stored / "model.safetensors").unlink()
    with pytest.raises(InvalidOperationError, match=r"model\.path: .* holds no causal language model"):
        build(ModelConfig(path=stored), 384, 64)


def test_a_tokenizer_is_a_folder(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path / "mine")
    encode, size = tokenizer(DataConfig(tokenizer=str(tmp_path / "mine")))
    assert encode(b"ab").tolist() == [100, 101, 1]
    assert size == 384
    with pytest.raises(InvalidOperationError, match=r"data\.tokenizer: gpt2 is neither 'bytes' nor a folder"):
        tokenizer(DataConfig(tokenizer="gpt2"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidOperationError, match=r"data\.tokenizer: no tokenizer in .*empty"):
        tokenizer(DataConfig(tokenizer=str(tmp_path / "empty")))
