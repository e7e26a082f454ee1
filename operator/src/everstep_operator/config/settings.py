"""The operator's settings, from variables with the prefix EVERSTEP_OPERATOR_ (the chart sets them)."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Literal, Self
from uuid import uuid4

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def _own_namespace() -> str:
    """The namespace that the operator's pod runs in, `default` outside a cluster."""
    try:
        return _SERVICE_ACCOUNT_NAMESPACE.read_text(encoding="utf-8").strip() or "default"
    except OSError:
        return "default"


def _own_identity() -> str:
    """Where nothing tells the pod's uid, a random part keeps one process from being taken for another."""
    return f"{socket.gethostname()}-{uuid4().hex[:8]}"


class Settings(BaseSettings):
    """Everything that can be set about a running operator."""

    model_config = SettingsConfigDict(
        env_prefix="EVERSTEP_OPERATOR_", extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    kubeconfig: Path | None = None
    """Kubeconfig file; absent: the pod's service account."""
    watch_namespaces: Annotated[tuple[str, ...], NoDecode] = ()
    """Namespaces to watch, separated by commas; empty: all."""
    profiles_file: Path = Path("/etc/everstep/profiles.yaml")
    """Storage profiles, see `everstep_operator.config.profiles`."""

    lease_name: str = "everstep-operator"
    """Name of the Lease whose holder acts."""
    lease_namespace: str = Field(default_factory=_own_namespace)
    """Namespace of that Lease; the operator's own."""
    identity: Annotated[str, Field(min_length=1, max_length=320)] = Field(default_factory=_own_identity)
    """Name of this process as the Lease's holder. The chart gives the pod's name and uid: a restarted container, whose
    predecessor in the pod is dead, then has its Lease back at once. Two processes must never have the same."""
    lease_seconds: Annotated[float, Field(ge=2, le=300)] = 15
    """How long a Lease lasts that is not renewed."""
    lease_renew_seconds: Annotated[float, Field(gt=0, le=100)] = 5
    """How often the holder renews it, and the others look."""

    concurrency: Annotated[int, Field(ge=1, le=256)] = 16
    """Jobs that are reconciled at the same time."""
    store_threads: Annotated[int, Field(ge=1, le=256)] = 16
    """Storage requests that are under way at the same time."""
    request_timeout_seconds: Annotated[float, Field(gt=0, le=300)] = 30
    """Limit of one request to the API server."""
    store_timeout_seconds: Annotated[float, Field(gt=0, le=300)] = 15
    """Limit of one request to the storage."""
    poll_seconds: Annotated[float, Field(ge=0.2, le=300)] = 5
    """Shortest time between two looks at a running job's registers."""
    poll_max_seconds: Annotated[float, Field(ge=0.2, le=3600)] = 30
    """Longest time between two looks, under load."""
    progress_seconds: Annotated[float, Field(ge=0, le=3600)] = 15
    """Shortest time between two writes of a job's progress alone."""
    resync_seconds: Annotated[float, Field(ge=1, le=86_400)] = 600
    """How often each job is looked at without a cause."""

    http_host: str = "0.0.0.0"  # noqa: S104  (the kubelet's probes come from outside the pod)
    """Address of the HTTP server."""
    http_port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """Port of `/healthz`, `/readyz` and `/metrics`; 0 picks a free one."""
    log_format: Literal["json", "console"] = "json"
    """Log lines as JSON objects or for people."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Lowest level that is logged."""

    @field_validator("watch_namespaces", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name for name in (part.strip() for part in value.split(",")) if name)
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.lease_renew_seconds * 2 > self.lease_seconds:
            raise ValueError(
                f"lease_renew_seconds ({self.lease_renew_seconds:g}) must be at most half of lease_seconds "
                f"({self.lease_seconds:g}): one renewal that is lost must not end the leadership"
            )
        if self.poll_seconds > self.poll_max_seconds:
            raise ValueError(
                f"poll_seconds ({self.poll_seconds:g}) must not exceed poll_max_seconds ({self.poll_max_seconds:g})"
            )
        return self
