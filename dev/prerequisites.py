"""Programs that the system must have: found, installed by apt where we may, or named with the command to type."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

# Program (or file) -> Debian's package (the same in Debian 12 and 13).
API: Mapping[str, str] = {"openssl": "openssl"}
FULL: Mapping[str, str] = {
    **API,
    "ip": "iproute2",
    "mount": "mount",
    "nft": "nftables",
    "nsenter": "util-linux",
    "busybox": "busybox-static",
    "runc": "runc",
}
IMAGES: Mapping[str, str] = {
    **FULL,
    "buildah": "buildah",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
    "mmdebstrap": "mmdebstrap",
    "skopeo": "skopeo",
}
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not on everyone's PATH


class MissingError(RuntimeError):
    """Programs are missing and could not be installed."""


def missing(programs: Mapping[str, str]) -> list[str]:
    """The packages of the programs that are not there, sorted."""
    path = ":".join([os.environ.get("PATH", ""), *SBIN])
    return sorted(
        package
        for program, package in programs.items()
        if not (Path(program).exists() if program.startswith("/") else shutil.which(program, path=path))
    )


def ensure(programs: Mapping[str, str], *, console: Console | None = None) -> None:
    """Install what is missing where we are root on a Debian-like system; else raise with the command to type."""
    absent = missing(programs)
    if not absent:
        return
    command = f"apt-get install --no-install-recommends {' '.join(absent)}"
    if not shutil.which("apt-get"):
        wanted = ", ".join(sorted(set(programs) - found(programs)))
        raise MissingError(f"these programs are missing: {wanted}. On Debian or Ubuntu: {command}")
    if os.geteuid() != 0:
        raise MissingError(f"these packages are missing: {', '.join(absent)}. Install them with: sudo {command}")
    (console or Console(stderr=True)).print(f"installing {', '.join(absent)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *absent]
    for attempt in (["apt-get", "update", "-q"], install):
        done = subprocess.run(attempt, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise MissingError(f"{' '.join(attempt)} failed:\n{(done.stderr or done.stdout)[-2000:]}\nTry: {command}")
    if still := missing(programs):
        raise MissingError(f"still missing after apt-get: {', '.join(still)}")


def found(programs: Mapping[str, str]) -> set[str]:
    """The programs that are there."""
    return {program for program, package in programs.items() if package not in missing({program: package})}


def require_root(why: str) -> None:
    """Raise unless we are root."""
    if os.geteuid() != 0:
        raise MissingError(f"{why} needs root: run it with sudo, or use --level api")
