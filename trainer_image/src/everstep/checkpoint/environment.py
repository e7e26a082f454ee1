"""What the operator tells a pod, and what a user without an operator may set instead. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_settings import BaseSettings, SettingsConfigDict

from everstep.errors import InvalidOperationError

DEFAULT_INTERVAL_SECONDS = 600.0


class _Section(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class Interval(_Section):
    """How often to save; with both, whichever comes first."""

    steps: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0)


class KeepBest(_Section):
    count: int = Field(default=1, ge=1)
    metric: str = "loss"
    mode: Literal["min", "max"] = "min"


class WeightsPolicy(_Section):
    """Weight-only saves for consumers."""

    interval: Interval = Interval()
    keep_last: int = Field(default=2, ge=1)


class LocalPolicy(_Section):
    """Saves on the nodes, beside the others."""

    interval: Interval
    replicas: int = Field(default=0, ge=0, le=1)
    """Copies of each rank's part on another node."""


class Policy(_Section):
    """The part of a TrainingJob's `checkpoint` section that concerns the trainer."""

    interval: Interval = Interval(seconds=DEFAULT_INTERVAL_SECONDS)
    asynchronous: bool = Field(default=True, alias="async")
    """Whether training goes on while a save is copied, stored and committed."""
    keep_last: int | None = Field(default=None, ge=1)
    keep_best: KeepBest | None = None
    keep_every: int | None = Field(default=None, ge=1)
    local: LocalPolicy | None = None
    weights: WeightsPolicy | None = None
    save_timeout_seconds: float | None = Field(default=None, gt=0)
    """For how long saves may fail, one after the other, before that ends the run; None: training goes on."""


class JobEnvironment(BaseSettings):
    """Variables `EVERSTEP_…`. Credentials and endpoint of S3 are boto3's own (`AWS_ENDPOINT_URL`, `AWS_REGION`, …)."""

    model_config = SettingsConfigDict(env_prefix="EVERSTEP_", env_ignore_empty=True, extra="ignore", frozen=True)

    namespace: str | None = None
    job: str | None = None
    job_uid: str | None = None
    attempt: int | None = None
    root: str | None = None
    """The job's root: s3://bucket/prefix/namespace/name, or a path."""
    resume_path: str | None = None
    """What the operator saw when it fenced; the claim's document decides."""
    resume_step: int | None = None
    policy: Policy | None = None
    local_path: Path | None = None
    """A folder of the node for the local tier, and how many bytes may lie in it."""
    local_bytes: int | None = Field(default=None, gt=0)
    heartbeat_seconds: float = Field(default=5.0, gt=0)
    termination_log: Path = Path("/dev/termination-log")

    @property
    def has_operator(self) -> bool:
        return self.attempt is not None


def read_environment() -> JobEnvironment:
    """Raises InvalidOperationError that names the variable and its value."""
    try:
        return JobEnvironment()
    except ValidationError as error:
        first = error.errors()[0]
        name = "EVERSTEP_" + "_".join(str(part) for part in first["loc"][:1]).upper()
        inner = ".".join(str(part) for part in first["loc"][1:])
        raise InvalidOperationError(
            f"{name}{': ' + inner if inner else ''}: {first['msg']} (got {first['input']!r})"
        ) from error
    except Exception as error:  # pydantic-settings wraps broken JSON in its own error type
        raise InvalidOperationError(f"environment: {error}: {error.__cause__}") from error
