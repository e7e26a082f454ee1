"""Runs buildah and skopeo with a storage of its own in the cache, and leaves no mounts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from dev.instance import InstanceError

# Where pip and uv look for settings: the host's own, so that a build fetches from where the host does.
SETTINGS = {
    "/etc/pip.conf": ("${PIP_CONFIG_FILE}", "~/.config/pip/pip.conf", "~/.pip/pip.conf", "/etc/pip.conf"),
    "/etc/uv/uv.toml": ("${UV_CONFIG_FILE}", "~/.config/uv/uv.toml", "/etc/uv/uv.toml"),
    "/etc/ssl/certs": ("/etc/ssl/certs",),
}

# A mount namespace of its own: what it mounts goes with it, and what it notes below /var/lib as well.
PRIVATE = (
    *("unshare", "--mount", "--propagation", "private"),
    *("sh", "-c", 'mount -n -t tmpfs -o mode=755 everstep /var/lib && exec "$@"', "sh"),
)


class Buildah:
    """A builder whose images, layers and caches lie in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def command(self, *arguments: str) -> list[str]:
        storage = (f"--root={self.storage}", f"--runroot={self.runtime}", "--storage-driver=overlay")
        return ["buildah", *storage, *arguments]

    @property
    def storage(self) -> Path:
        return self.directory / "storage"

    @property
    def runtime(self) -> Path:
        return self.directory / "run"

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._run(self.command(*arguments), check=check)

    def _run(self, command: list[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        temporary = self.directory / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(temporary)}
        done = subprocess.run([*PRIVATE, *command], capture_output=True, text=True, env=environment)
        if check and done.returncode != 0:
            words = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
            raise InstanceError(f"{' '.join(command[:1] + command[-2:])} failed:\n{words}")
        return done

    def image_id(self, name: str) -> str | None:
        """The id of an image, or None where there is none."""
        done = self.run("inspect", "--type=image", "--format={{.FromImageID}}", name, check=False)
        return done.stdout.strip() or None

    def build(self, name: str, dockerfile: Path, context: Path, arguments: Mapping[str, str]) -> None:
        """Build a Dockerfile on local images only; layers of earlier builds are used again."""
        options = ["--layers", "--pull-never", "--network=host", f"--tag={name}", f"--file={dockerfile}"]
        options += [f"--volume={source}:{target}:ro" for target, source in host_settings().items()]
        options += [f"--build-arg={key}={value}" for key, value in arguments.items()]
        self.run("build", *options, str(context))

    def prune(self) -> None:
        """Remove what no name leads to: layers of earlier builds, the next build's cache included."""
        self.run("rmi", "--prune", check=False)

    def export(self, name: str, layout: Path) -> None:
        """Write an image into an OCI layout, its layers as they are stored: uncompressed. Blobs there are kept."""
        source = f"containers-storage:[overlay@{self.storage}+{self.runtime}]{name}"
        accept = "--dest-oci-accept-uncompressed-layers"  # buildah's own push would compress
        self._run(["skopeo", "copy", "--quiet", accept, source, f"oci:{layout}:image"])


def host_settings() -> dict[str, Path]:
    """Target in the build, and the file or directory of the host to show there, of those that exist."""
    found: dict[str, Path] = {}
    for target, places in SETTINGS.items():
        candidates = [Path(os.path.expandvars(place)).expanduser() for place in places]
        existing = [path for path in candidates if path.is_absolute() and path.exists()]
        if existing:
            found[target] = existing[0]
    return found
