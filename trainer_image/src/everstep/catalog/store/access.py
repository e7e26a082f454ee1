"""How to reach object storage."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class S3Access:
    """How to reach object storage. What is None comes from boto3's own chain (environment, files, workload
    identity).
    """

    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = None
    session_token: str | None = None
    connect_timeout: float = 5.0
    read_timeout: float = 30.0
    attempts: int = 4
    """Tries of a request that is not a swap."""
    whose: str = "the credentials of its environment"
    """Whose credentials these are, for messages of a refusal."""
