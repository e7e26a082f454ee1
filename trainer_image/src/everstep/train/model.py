"""The model and its sharding: one FSDP unit a decoder block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from everstep.errors import InvalidOperationError
from everstep.train.config import ModelConfig


def build(config: ModelConfig, vocabulary: int, sequence: int) -> nn.Module:
    """A causal language model, with random weights from torch's generator unless `config.path` has others.

    Called with input_ids, it returns .logits. Raises InvalidOperationError where tokens or samples do not fit it.
    """
    if config.path is not None:
        return _stored(config.path, vocabulary, sequence)
    inner = config.feed_forward or 3 * config.hidden
    if config.family == "llama":
        from transformers import LlamaConfig, LlamaForCausalLM

        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=config.hidden,
                intermediate_size=inner,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                max_position_embeddings=sequence,
                attention_dropout=config.dropout,
                tie_word_embeddings=False,
                use_cache=False,
            )
        )
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_embd=config.hidden,
            n_inner=inner,
            n_layer=config.layers,
            n_head=config.heads,
            n_positions=sequence,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            tie_word_embeddings=False,
            use_cache=False,
        )
    )


def _stored(path: Path, vocabulary: int, sequence: int) -> nn.Module:
    from transformers import AutoModelForCausalLM

    if not (path / "config.json").is_file():
        raise InvalidOperationError(f"model.path: {path} has no config.json: a folder of save_pretrained() is needed")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidOperationError(f"model.path: {path} holds no causal language model: {error}") from error
    known: Any = model.config
    if vocabulary > known.vocab_size:
        raise InvalidOperationError(
            f"data.tokenizer: it has {vocabulary} tokens, the model in {path} knows {known.vocab_size}; use its own"
        )
    longest = getattr(known, "max_position_embeddings", None)
    if longest is not None and sequence > longest:
        raise InvalidOperationError(f"data.sequence: {sequence} tokens, the model in {path} takes {longest} at most")
    known.use_cache = False
    found: nn.Module = model.train()
    return found


def shard(model: nn.Module, mesh: DeviceMesh, half: bool) -> nn.Module:
    """Shard parameters over `mesh`; `half`: compute in bf16, reduce gradients in fp32."""
    options: dict[str, Any] = {"mesh": mesh}
    if half:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in blocks(model):
        fully_shard(block, **options)
    fully_shard(model, **options)
    return model


def blocks(model: nn.Module) -> list[nn.Module]:
    """What `transformers` itself says must stay on one device."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in kinds]


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of each token given those before it; `tokens` is [batch, sequence + 1]."""
    logits = model(input_ids=tokens[:, :-1]).logits
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, vectors (norms, biases) do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
