"""Where and of what something was measured."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dev.paths import REPOSITORY


def machine() -> dict[str, Any]:
    """Machine, load averages, versions, and the commit that is measured."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "cpu": model.partition(":")[2].strip(),
        "memory_gib": round(memory),
        "load_average": os.getloadavg(),
        "torch": version("torch"),
        "commit": _commit(),
    }


def _commit() -> str:
    """Marked where files differ from it, other than the results that are being written."""
    results = ("--untracked-files=no", "--", ".", ":(exclude,glob)**/results/**")
    return _git("describe", "--always") + ("-dirty" if _git("status", "--porcelain", *results) else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=REPOSITORY).stdout.strip()
