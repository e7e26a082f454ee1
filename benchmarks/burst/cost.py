"""What a process has cost so far, from /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    cpu_seconds: float
    peak_mib: float
    """Resident, the most it ever was."""
    mib: float

    @classmethod
    def of(cls, pid: int) -> Cost:
        """Raises FileNotFoundError where the process is gone."""
        stat = Path(f"/proc/{pid}/stat").read_text()
        fields = stat[stat.rindex(")") + 2 :].split()
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        return cls(
            (int(fields[11]) + int(fields[12])) / TICK, _kib(status["VmHWM"]) / 1024, _kib(status["VmRSS"]) / 1024
        )


def _kib(value: str) -> int:
    return int(value.split()[0])
