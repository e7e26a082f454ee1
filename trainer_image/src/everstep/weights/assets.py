"""What readers of a model want beside its weights: its configuration, and the files of its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from everstep.catalog.keys import is_asset
from everstep.errors import InvalidOperationError

CONFIG = "config.json"
ASSETS = "assets/"
"""Where they lie in a checkpoint; in a set of weights they lie beside the tensors."""


def assets_of(model: nn.Module | None, given: Mapping[str, str | bytes]) -> dict[str, bytes]:
    """The given files by name, and the configuration of a transformers model, which needs not be given.

    Raises InvalidOperationError for a name that everstep uses itself, or that is none.
    """
    for name in given:
        if not is_asset(name):
            raise InvalidOperationError(f"assets: {name!r} cannot be the name of a file beside the weights")
    found = {name: body.encode() if isinstance(body, str) else bytes(body) for name, body in given.items()}
    config = getattr(getattr(model, "module", model), "config", None)
    if CONFIG not in found and callable(getattr(config, "to_json_string", None)):
        found[CONFIG] = _config(getattr(model, "module", model), config)
    return found


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)
"""As transformers names them."""


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Those of a tokenizer that was saved with save_pretrained, as `assets=` takes them."""
    return {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}


def _config(model: Any, config: Any) -> bytes:
    content = json.loads(config.to_json_string())
    if not content.get("architectures"):  # set by save_pretrained alone; sharding puts a class of its own before
        names = [kind.__name__ for kind in type(model).__mro__]
        content["architectures"] = [next(name for name in names if not name.startswith("FSDP"))]
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
