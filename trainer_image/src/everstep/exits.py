"""Exit codes by which a launcher, an operator or a shell tells the ends of a training process apart."""

from __future__ import annotations

FAILED = 1
UNSAVED = 74
"""No save has succeeded for as long as the job allows: its storage is at fault, not its workers (EX_IOERR)."""
FENCED = 76
"""Another attempt or worker group has taken over; starting this one again is pointless."""
MISFIT = 78
"""It cannot work as it stands: checkpoint of another architecture, bad configuration (EX_CONFIG of sysexits.h)."""
TERMINATED = 143
"""SIGTERM: the step was saved, then the process ended (128 + 15)."""
