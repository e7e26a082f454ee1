"""Whether the disk has room for what the first runs fetch, build and load: said at once, not after ten minutes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from dev import build
from dev.images import TRAINER, recorded
from dev.instance import InstanceError
from dev.paths import cache

GB = 1_000_000_000
SPARE = 3 * GB
"""For the jobs themselves, and so that the kubelet sees no disk pressure."""


@dataclass(frozen=True)
class Cost:
    """Bytes that something takes on the disk the first time, as measured with empty caches."""

    what: str
    bytes: int
    paid: bool


def costs() -> list[Cost]:
    """What a cluster with the trainer's image takes, and what of it the caches hold already."""
    built = all(path.is_dir() for path in build.targets().values())
    loaded = any((cache() / "containerd").glob("*/io.containerd.content.v1.content/blobs/sha256/*"))
    return [
        Cost("Kubernetes, built from source", 8 * GB, built),
        Cost("the images as they are built", 8 * GB, recorded(TRAINER) is not None),
        Cost("the node's copy of them", 13 * GB, loaded),
    ]


def ensure(found: list[Cost], free: int, place: Path) -> None:
    """Raise InstanceError where `free` bytes are less than what is still to be paid."""
    due = [cost for cost in found if not cost.paid]
    needed = sum(cost.bytes for cost in due) + SPARE
    if free >= needed:
        return
    parts = ", ".join(f"{cost.what} ({cost.bytes / GB:.0f} GB)" for cost in due)
    raise InstanceError(
        f"{place} has {free / GB:.1f} GB free, and {needed / GB:.0f} GB are needed{': ' + parts if parts else ''}. "
        "Free some (python -m dev prune gives back caches that nothing uses), or set EVERSTEP_CACHE elsewhere"
    )


def free() -> tuple[int, Path]:
    """Bytes free for the caches, and where they are."""
    place = cache()
    place.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(place).free, place
