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
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=REPOSITORY)
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "cpu": model.partition(":")[2].strip(),
        "memory_gib": round(memory),
        "load_average": os.getloadavg(),
        "torch": version("torch"),
        "commit": commit.stdout.strip(),
    }
