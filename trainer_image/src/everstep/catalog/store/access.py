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
    patience: float = 0.0
    """Seconds since a request of an object last succeeded, in which its others are tried again beyond `attempts`."""
    connections: int = 8
    """Parts of objects on their way at a time."""
    slowest: float = 256 << 10
    """Bytes a second below which an answer that comes at all counts as none."""
    whose: str = "the credentials of its environment"
    """Whose credentials these are, for messages of a refusal."""
