"""The recipe's configuration: flags, then `EVERSTEP_TRAIN_…` variables, then a YAML file, then these defaults.

Flags name fields with dots (`--model.layers 4`), variables with double underscores (`EVERSTEP_TRAIN_MODEL__LAYERS=4`).
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from everstep.errors import InvalidOperationError

ENVIRONMENT_PREFIX = "EVERSTEP_TRAIN_"

OUTSIDE = frozenset(
    {
        *("config", "root", "loss_log", "save_steps", "save_seconds", "save_async", "weights_steps"),
        *("keep_last", "keep_best", "keep_every", "resume", "resume_step"),
    }
)
"""Fields that do not change what is learnt: where a run is kept, how often, and where it begins."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelConfig(_Section):
    """A causal language model of `transformers`: nothing is downloaded."""

    path: Path | None = None
    """A folder with a model of `transformers` (config.json, safetensors): its architecture and its weights to begin
    with, in place of the fields below."""
    weights: str | None = None
    """A checkpoint of everstep, or a job's root for its latest, whose weights a fresh start begins with."""
    family: Literal["llama", "gpt2"] = "llama"
    """Which architecture."""
    layers: int = Field(default=4, ge=1)
    """Decoder blocks; each is one FSDP unit."""
    hidden: int = Field(default=128, ge=8)
    """Width of the residual stream."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; divides `hidden`."""
    feed_forward: int | None = Field(default=None, ge=8)
    """Inner width of the feed-forward block; 3 times `hidden` where absent."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability (gpt2; llama has it in attention only)."""

    @model_validator(mode="after")
    def _divides(self) -> ModelConfig:
        if self.hidden % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide hidden ({self.hidden})")
        return self


class DataConfig(_Section):
    """What text to learn from."""

    source: str = "stdlib"
    """`stdlib` (the Python standard library's own sources), or a file, folder or s3:// prefix of text or JSONL."""
    text_field: str = "text"
    """The field of a JSONL record that holds the text."""
    sequence: int = Field(default=128, ge=8)
    """Tokens a sample."""
    max_bytes: int = Field(default=16 << 20, ge=1024)
    """At most this much text is read, in the order of names."""
    held_out: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of the documents that evaluation alone sees."""
    workers: int = Field(default=0, ge=0)
    """Processes a rank that prepare batches ahead of training; 0: prepared between steps."""
    on_change: Literal["error", "warn"] = "error"
    """Where a checkpoint was made with another text or order: refuse it, or begin a new epoch with what is there."""
    tokenizer: str = "bytes"
    """`bytes` (ByT5's: one token a byte, needs no files), or a folder that transformers' AutoTokenizer loads."""


class OptimizerConfig(_Section):
    """AdamW, with warm-up and cosine decay by absolute step."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    minimum: float = Field(default=0.1, ge=0, le=1)
    """The last learning rate, as a share of the peak."""
    warm_up: int = Field(default=20, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay of matrices; vectors have none."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """First moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Second moment."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""


class EvaluationConfig(_Section):
    """The score: loss on held-out text, lower is better."""

    every: int = Field(default=50, ge=0)
    """Steps between evaluations; 0: only at the end."""
    samples: int = Field(default=32, ge=1)
    """Held-out samples, the same each time."""


class TrainConfig(BaseSettings):
    """Configuration of `torchrun -m everstep.train`."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        cli_prog_name="torchrun -m everstep.train",
        cli_avoid_json=True,
    )

    config: Path | None = None
    """A YAML file with these fields."""
    steps: int = Field(default=200, ge=1)
    """Optimizer steps in total."""
    global_batch: int = Field(default=8, ge=1)
    """Samples a step over all ranks: it does not change with their number, which must divide it."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Samples a forward pass on one rank; the rest is accumulated."""
    seed: int = 0
    """Of the weights, of random numbers and of the order of samples."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 with fp32 reduction where the accelerator has it, else fp32."""
    deterministic: bool = True
    """Deterministic algorithms and a fixed number of threads, so that a resumed run is bit for bit the same."""
    threads: int = Field(default=1, ge=1)
    """Threads of a rank on CPU, where `deterministic`."""
    root: str | None = None
    """Where checkpoints go, when no operator says so: an s3:// URI or a path. Default: EVERSTEP_ROOT."""
    save_steps: int | None = Field(default=None, ge=1)
    """Steps between saves; with `save_seconds` in place of the job's policy."""
    save_seconds: float | None = Field(default=None, gt=0)
    """Seconds between saves."""
    save_async: bool | None = None
    """Whether training goes on while a step is saved, in place of the job's policy."""
    keep_last: int | None = Field(default=None, ge=1)
    """How many of the newest checkpoints to keep; with none of these three all. An operator's policy goes before."""
    keep_best: int | None = Field(default=None, ge=1)
    """How many with the lowest evaluation loss to keep besides."""
    keep_every: int | None = Field(default=None, ge=1)
    """Keep each step that is a multiple of this besides."""
    resume: str = "auto"
    """`auto` (the latest committed step), `disable`, or the path of a checkpoint or a job's root. An operator's
    `spec.resume` goes before this and `resume_step`."""
    resume_step: int | None = Field(default=None, ge=0)
    """Train on from this committed step; later ones are set aside."""
    weights_steps: int | None = Field(default=None, ge=1)
    """Publish the weights alone each so many steps, for consumers; in place of the job's policy."""
    loss_log: Path | None = None
    """A local file that gets the step lines too."""
    model: ModelConfig = ModelConfig()
    """The model."""
    data: DataConfig = DataConfig()
    """The text."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """The score."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = _FILE.get("path")
        sources = (init_settings, env_settings)
        return (*sources, YamlConfigSettingsSource(settings_cls, file)) if file else sources


_FILE: dict[str, Path] = {}
"""The YAML file of the call under way: pydantic-settings asks for sources by class."""


def read_config(arguments: Sequence[str]) -> TrainConfig:
    """Raises InvalidOperationError that names each field that is unknown or has a bad value; SystemExit for --help."""
    _check_flags(arguments)
    _check_variables()
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    path = finder.parse_known_args(list(arguments))[0].config
    _FILE.clear()
    if path is not None:
        if not path.is_file():
            raise InvalidOperationError(f"--config {path}: no such file")
        _FILE["path"] = path
    try:
        source: CliSettingsSource[Any] = CliSettingsSource(TrainConfig, cli_parse_args=list(arguments))
        return TrainConfig(_cli_settings_source=source)
    except ValidationError as error:
        raise InvalidOperationError("configuration: " + "; ".join(map(_complaint, error.errors()))) from error
    except yaml.YAMLError as error:
        raise InvalidOperationError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    finally:
        _FILE.clear()


def _complaint(error: Any) -> str:
    name = ".".join(map(str, error["loc"])) or "configuration"
    if error["type"] == "extra_forbidden":
        return f"there is no field {name}{_suggestion(name)}"
    return f"{name}: {error['msg']} (got {error['input']!r})"


def _check_flags(arguments: Sequence[str]) -> None:
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in ("--", "--help") and name[2:] not in _fields(TrainConfig):
            raise InvalidOperationError(f"there is no flag {name}{_suggestion(name[2:], '--')}")


def _check_variables() -> None:
    """Those of a section are checked with the section; pydantic-settings passes over the others."""
    for variable in os.environ:
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
        if variable.startswith(ENVIRONMENT_PREFIX) and name not in _fields(TrainConfig):
            raise InvalidOperationError(f"{variable}: there is no field {name}{_suggestion(name)}")


def _fields(section: type[BaseModel], prefix: str = "") -> set[str]:
    """All names, with dots; sections too, which may be given as JSON."""
    names: set[str] = set()
    for name, field in section.model_fields.items():
        names.add(f"{prefix}{name}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names |= _fields(field.annotation, f"{prefix}{name}.")
    return names


def _suggestion(name: str, mark: str = "") -> str:
    near = difflib.get_close_matches(name, sorted(_fields(TrainConfig)), n=1)
    return f"; did you mean {mark}{near[0]}?" if near else "; --help lists them"
