"""Where things stand under a job's root. Every key is relative to that root; a location matches one pattern or is
refused.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

CATALOG = "catalog.json"
CHECKPOINTS = "checkpoints/"
PROGRESS = "progress/"
TENSORBOARD = "tensorboard/"

MANIFEST = "manifest.json"
METADATA = ".metadata"
COMMITTED = "COMMITTED"

MAX_STEP = 10**12 - 1
MAX_EPOCH = 10**9 - 1

_LOCATION = re.compile(r"checkpoints/step_([0-9]{12})-([0-9]{6,9})-([0-9a-f]{12})")
_FILE = re.compile(
    r"\.metadata|manifest\.json|COMMITTED|__[0-9]{1,6}_[0-9]{1,6}\.distcp|assets/[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
)


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """One save. The nonce makes it unique, so that a key is never written twice."""

    step: int
    epoch: int
    nonce: str

    @classmethod
    def new(cls, step: int, epoch: int) -> Location:
        """Raises ValueError for a step or epoch that no location can hold."""
        return cls.parse(str(cls(step, epoch, secrets.token_hex(6))))

    @classmethod
    def parse(cls, text: str) -> Location:
        """Raises ValueError for anything but one location, such as a path that climbs out of the root."""
        match = _LOCATION.fullmatch(text)
        location = cls(int(match[1]), int(match[2]), match[3]) if match else None
        if location is None or str(location) != text:  # one save has one spelling: the register compares texts
            shown = repr(text[:100])
            raise ValueError(f"{shown} is not a checkpoint location (checkpoints/step_<12 digits>-<epoch>-<nonce>)")
        return location

    def __str__(self) -> str:
        return f"{CHECKPOINTS}step_{self.step:012}-{self.epoch:06}-{self.nonce}"

    def key(self, file: str) -> str:
        return f"{self}/{file}"


def is_checkpoint_file(name: str) -> bool:
    """Whether a name inside a location is one that everstep writes: removal touches nothing else."""
    return _FILE.fullmatch(name) is not None


def progress_key(attempt: int) -> str:
    return f"{PROGRESS}{attempt:06}.json"


def job_root(base: str, namespace: str, name: str) -> str:
    """The job's root URI, without a slash at its end."""
    return f"{base.rstrip('/')}/{namespace}/{name}"


def split_root(uri: str) -> tuple[str, Location | None]:
    """A root, or a checkpoint inside one: `s3://b/ns/job/checkpoints/step_…` gives the root and the location."""
    trimmed = uri.rstrip("/")
    head, mark, tail = trimmed.rpartition("/" + CHECKPOINTS)
    if not mark:
        return trimmed, None
    return head, Location.parse(CHECKPOINTS + tail)
