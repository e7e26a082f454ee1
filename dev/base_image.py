"""The base image of the project's Dockerfiles, made from Debian's packages where no registry can be pulled from.

It has the public image's name and what the Dockerfiles use of it, so that with a registry the same files build on the
official image.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

from rich.console import Console

from dev.buildah import Buildah
from dev.instance import InstanceError

NAME = "docker.io/library/python:3.13-slim-trixie"
SUITE = "trixie"
PACKAGES = ("ca-certificates", "netbase", "python3", "python3-venv", "tzdata")
WITHOUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
# pip as the public image has it, from the wheel that Debian's venv module carries.
PIP = """#!/bin/sh
exec /usr/bin/python3 "$(echo /usr/share/python-wheels/pip-*.whl)/pip" "$@"
"""
HOOKS = (
    'ln -s /usr/bin/python3 "$1/usr/local/bin/python"',
    'ln -s /usr/bin/python3 "$1/usr/local/bin/python3"',
    f'printf %s {shlex.quote(PIP)} >"$1/usr/local/bin/pip" && chmod 755 "$1/usr/local/bin/pip"',
    'ln -s pip "$1/usr/local/bin/pip3"',
    'rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED',
    'rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/log/*',
)
DOCKERFILE = """FROM scratch
ADD base.tar /
ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
LABEL everstep.dev/recipe={recipe}
CMD ["python3"]
"""


def ensure(buildah: Buildah, console: Console) -> str:
    """The base image's id; the image is made if the storage does not have it from this recipe."""
    recipe = hashlib.sha256("\0".join([SUITE, *PACKAGES, *WITHOUT, *HOOKS, DOCKERFILE]).encode()).hexdigest()[:16]
    tag = f"localhost/everstep/base:{recipe}"
    if not buildah.image_id(tag):
        console.print(f"making the base image {NAME} from Debian {SUITE}'s packages")
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            context = Path(place)
            bootstrap(context / "base.tar")
            (context / "Dockerfile").write_text(DOCKERFILE.format(recipe=recipe))
            buildah.build(tag, context / "Dockerfile", context, {})
        console.print(f"made {NAME} in {time.monotonic() - started:.0f} s", highlight=False)
    buildah.run("tag", tag, NAME)
    image_id = buildah.image_id(NAME)
    if image_id is None:
        raise InstanceError(f"the builder made no image {NAME}")
    return image_id


def bootstrap(tar: Path) -> None:
    """Install Debian's packages into a tar file."""
    options = ["--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    options += [f"--dpkgopt=path-exclude={pattern}" for pattern in WITHOUT]
    options += [f"--customize-hook={hook}" for hook in HOOKS]
    # In a mount namespace of its own: an interrupted run leaves no mounts.
    private = ["unshare", "--mount", "--propagation", "private"]
    command = [*private, "mmdebstrap", "--quiet", *options, SUITE, str(tar)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise InstanceError(f"mmdebstrap could not make the base image:\n{done.stderr[-3000:]}")
