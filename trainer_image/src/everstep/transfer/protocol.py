"""What trainer and uploader say to each other, pickled, over a socket that only these two hold.

A `Share` is followed by the buffer's descriptor. The trainer's end closing means that the trainer is dead.
"""

from __future__ import annotations

from dataclasses import dataclass

from everstep.catalog.store import S3Access


@dataclass(frozen=True, slots=True)
class Open:
    """The first message. Credentials travel here, never in arguments or variables that `ps` shows."""

    uri: str
    access: S3Access
    objects: int
    """How many objects are uploaded at a time."""
    sign: float
    """Seconds between two signs of life."""


@dataclass(frozen=True, slots=True)
class Share:
    buffer: str
    size: int


@dataclass(frozen=True, slots=True)
class Forget:
    buffer: str


@dataclass(frozen=True, slots=True)
class Put:
    number: int
    key: str
    buffer: str
    offset: int
    length: int
    sums: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """Upload what was submitted, then end."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """An object that storage has acknowledged."""

    key: str
    bytes: int
    retries: int
    at: float
    """When, on the monotonic clock, which the processes of a machine share."""


@dataclass(frozen=True, slots=True)
class Alive:
    """The process runs: said every few seconds from its start on, whatever its uploads wait for."""


@dataclass(frozen=True, slots=True)
class Done:
    number: int
    result: Uploaded | Exception
