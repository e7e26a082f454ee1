"""Where things stand under a job's root. Every key is relative to that root; a location matches one pattern or is
refused.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

CATALOG = "catalog.json"
CHECKPOINTS = "checkpoints/"
WEIGHTS_REGISTER = "weights.json"
WEIGHTS = "weights/"
PROGRESS = "progress/"
TENSORBOARD = "tensorboard/"

MANIFEST = "manifest.json"
METADATA = ".metadata"
COMMITTED = "COMMITTED"

MAX_STEP = 10**12 - 1
MAX_EPOCH = 10**9 - 1

_LOCATION = re.compile(r"(checkpoints/|weights/)step_([0-9]{12})-([0-9]{6,9})-([0-9a-f]{12})")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_FILE = re.compile(rf"\.metadata|manifest\.json|COMMITTED|__[0-9]{{1,6}}_[0-9]{{1,6}}\.distcp|assets/{_NAME}")
_WEIGHTS_FILE = re.compile(_NAME)


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """One save: a checkpoint, or a set of weights. The nonce makes it unique, so that a key is never written twice."""

    step: int
    epoch: int
    nonce: str
    folder: str = CHECKPOINTS

    @classmethod
    def new(cls, step: int, epoch: int, folder: str = CHECKPOINTS) -> Location:
        """Raises ValueError for a step or epoch that no location can hold."""
        return cls.parse(str(cls(step, epoch, secrets.token_hex(6), folder)))

    @classmethod
    def parse(cls, text: str) -> Location:
        """Raises ValueError for anything but one location, such as a path that climbs out of the root."""
        match = _LOCATION.fullmatch(text)
        location = cls(int(match[2]), int(match[3]), match[4], match[1]) if match else None
        if location is None or str(location) != text:  # one save has one spelling: the register compares texts
            shown = repr(text[:100])
            raise ValueError(f"{shown} is not a checkpoint location (checkpoints/step_<12 digits>-<epoch>-<nonce>)")
        return location

    def __str__(self) -> str:
        return f"{self.folder}step_{self.step:012}-{self.epoch:06}-{self.nonce}"

    def key(self, file: str) -> str:
        return f"{self}/{file}"

    def holds(self, name: str) -> bool:
        """Whether a name inside this location is one that everstep writes: removal touches nothing else."""
        return is_weights_file(name) if self.folder == WEIGHTS else is_checkpoint_file(name)


def is_checkpoint_file(name: str) -> bool:
    return _FILE.fullmatch(name) is not None


def is_weights_file(name: str) -> bool:
    """Tensors, their index, the model's configuration and its tokenizer's files lie side by side."""
    return _WEIGHTS_FILE.fullmatch(name) is not None


def is_asset(name: str) -> bool:
    """Whether a file may lie beside weights: it is none that everstep writes itself."""
    own = name in (MANIFEST, COMMITTED) or name.endswith((".safetensors", ".safetensors.index.json"))
    return is_weights_file(name) and not own


def progress_key(attempt: int) -> str:
    return f"{PROGRESS}{attempt:06}.json"


def request_key(attempt: int) -> str:
    return f"{PROGRESS}{attempt:06}/request.json"


def stacks_key(attempt: int, pod: str) -> str:
    """What the ranks of a pod were at when their attempt was given up for hanging. `*` names those of all pods."""
    name = re.sub(r"[^A-Za-z0-9.*-]", "-", pod)[:63]
    return f"{PROGRESS}{attempt:06}/stacks-{name}.txt"


def job_root(base: str, namespace: str, name: str) -> str:
    """The job's root URI, without a slash at its end."""
    return f"{base.rstrip('/')}/{namespace}/{name}"


def split_root(uri: str) -> tuple[str, Location | None]:
    """A root, or a checkpoint inside one: `s3://b/ns/job/checkpoints/step_…` gives the root and the location. Its
    register is as good as its name."""
    trimmed = uri.rstrip("/").removesuffix(f"/{CATALOG}")
    head, mark, tail = trimmed.rpartition("/" + CHECKPOINTS)
    if not mark:
        return trimmed, None
    return head, Location.parse(CHECKPOINTS + tail)
