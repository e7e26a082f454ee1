"""Gives back the disk of what the caches keep and nothing uses now."""

from __future__ import annotations

import os
import shutil

from rich.console import Console

from dev import build, network
from dev.buildah import Buildah
from dev.cluster import file_locked
from dev.instance import containerd_root
from dev.paths import SLOTS_LOCK, cache


def prune() -> None:
    """Remove builds of other contents; as root also unnamed layers, and containerd's images in slots that are free."""
    current = set(build.ensure().directories.values())
    with build.locked(Console(stderr=True)):
        for found in build.directory().iterdir():
            if found.is_dir() and found not in current:
                shutil.rmtree(found)
    if os.geteuid() != 0:
        return
    if (cache() / "images").exists() and shutil.which("buildah"):
        buildah = Buildah(cache() / "images")
        with file_locked(buildah.directory / ".lock"):
            buildah.prune()
    with file_locked(SLOTS_LOCK):
        for slot in network.free_slots():
            shutil.rmtree(containerd_root(slot), ignore_errors=True)
