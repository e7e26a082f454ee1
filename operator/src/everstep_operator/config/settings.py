"""The operator's settings, from variables with the prefix EVERSTEP_OPERATOR_ (the chart sets them)."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin
from uuid import uuid4

from pydantic import Field, FilePath, StringConstraints, ValidationError, field_validator, model_validator
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "EVERSTEP_OPERATOR_"
_DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_DNS_NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
_SERVICE_LINK = re.compile(r"(.*_)?(SERVICE_(HOST|PORT)(_.*)?|PORT(_\d+_.*)?)")
"""Variables that the kubelet makes for a Service whose name begins with everstep-operator."""
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

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, use_attribute_docstrings=True)

    kubeconfig: FilePath | None = None
    """Kubeconfig file; absent: the pod's service account."""
    watch_namespaces: Annotated[tuple[Annotated[str, StringConstraints(pattern=_DNS_LABEL)], ...], NoDecode] = ()
    """Namespaces to watch, separated by commas; empty: all."""
    profiles_file: Path = Path("/etc/everstep/profiles.yaml")
    """Storage profiles, see `everstep_operator.config.profiles`."""

    lease_name: Annotated[str, StringConstraints(pattern=_DNS_NAME)] = "everstep-operator"
    """Name of the Lease whose holder acts."""
    lease_namespace: Annotated[str, StringConstraints(pattern=_DNS_LABEL)] = Field(default_factory=_own_namespace)
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
                f"{PREFIX}LEASE_RENEW_SECONDS ({self.lease_renew_seconds:g}) must be at most half of "
                f"{PREFIX}LEASE_SECONDS ({self.lease_seconds:g}): one renewal that is lost must not end the leadership"
            )
        if self.poll_seconds > self.poll_max_seconds:
            raise ValueError(
                f"{PREFIX}POLL_SECONDS ({self.poll_seconds:g}) must not exceed "
                f"{PREFIX}POLL_MAX_SECONDS ({self.poll_max_seconds:g})"
            )
        return self


class SettingsError(Exception):
    """What is wrong with the settings, one line each."""

    def __init__(self, lines: Iterable[str]) -> None:
        super().__init__("\n".join(lines))


def read(arguments: Sequence[str]) -> Settings:
    """Settings from the environment, overridden by flags; each setting has a flag of its name. Raises SettingsError."""
    parser = argparse.ArgumentParser(
        prog="everstep-operator",
        description=f"Runs TrainingJobs. Every flag can also be set as a variable with the prefix {PREFIX}.",
    )
    for name, field in Settings.model_fields.items():
        words = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        about = " ".join((field.description or "").split())
        if field.default not in (None, (), PydanticUndefined):
            about += f" Default: {field.default}"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            metavar="|".join(words) or "VALUE",
            default=None,
            help=about.replace("%", "%%"),
        )
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    unknown = [_unknown(name) for name in sorted(os.environ) if _is_unknown(name)]
    if unknown:
        raise SettingsError(unknown)
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError(_line(problem) for problem in error.errors(include_url=False)) from None


def _is_unknown(name: str) -> bool:
    setting = name.removeprefix(PREFIX)
    return setting != name and setting.lower() not in Settings.model_fields and not _SERVICE_LINK.fullmatch(setting)


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), Settings.model_fields, 1)
    hint = f"did you mean {PREFIX}{close[0].upper()}?" if close else "see everstep-operator --help"
    return f"{name} is no setting: {hint}"


_PLAIN_WORDS = {
    "Input should": "it should",
    "String should": "it should",
    "Path does not point to a file": "there is no such file",
    f"match pattern '{_DNS_LABEL}'": "be the name of a namespace: lower-case letters, digits and -",
    f"match pattern '{_DNS_NAME}'": "be a name of Kubernetes: lower-case letters, digits, - and .",
}


def _line(problem: Mapping[str, Any]) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    for technical, plain in _PLAIN_WORDS.items():
        message = message.replace(technical, plain)
    if not problem["loc"]:
        return message
    setting = str(problem["loc"][0])
    return f"{PREFIX}{setting.upper()} (--{setting.replace('_', '-')}) is {problem['input']!r}: {message}"
