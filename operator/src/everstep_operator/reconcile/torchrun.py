"""The end of torchrun's log: it exits with 1 whatever its workers did, and only its log tells them apart."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

_SUMMARY = "Root Cause (first observed failure)"
_RANK = re.compile(r"^\s*rank\s*:\s*(\d{1,9})", re.MULTILINE)
_EXIT = re.compile(r"^\s*exitcode\s*:\s*(-?\d{1,9})", re.MULTILINE)
_TRACE = re.compile(r"^\s*traceback\s*:\s*(.+)", re.MULTILINE)
_FAILED = re.compile(r"failed \(exitcode: (-?\d{1,9})\)")
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)) ")
_PREFIX = re.compile(r"^\[(?:rank|default)?\d+\]:\s?")
_ERROR = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Interrupt|Exit|Warning|Group)?(?::\s.*)?$")


@dataclass(frozen=True, slots=True)
class Summary:
    """The first observed failure; `code` is negative for a signal."""

    rank: int | None
    code: int | None
    trace: str | None = None


def unstamped(log: str) -> tuple[str, datetime | None]:
    """The log without the container runtime's stamps, and the stamp of the last worker that its agent saw fail."""
    lines, failed = [], None
    for line in log.splitlines(keepends=True):
        stamp = _STAMP.match(line)
        text = line[stamp.end() :] if stamp else line
        if stamp and _FAILED.search(text):
            with suppress(ValueError):  # the first line is cut, and then somebody's own words
                failed = datetime.fromisoformat(stamp[1])
        lines.append(text)
    return "".join(lines), failed


def read_summary(log: str | None) -> Summary | None:
    """The last root cause in a log, else the last worker that its agent saw fail."""
    if not log:
        return None
    _, mark, tail = log.rpartition(_SUMMARY)
    if mark:
        rank, code, trace = _RANK.search(tail), _EXIT.search(tail), _TRACE.search(tail)
        told = trace[1].strip() if trace else None
        if told and told.startswith(("To enable", "Signal ")):
            told = None
        if code:
            return Summary(int(rank[1]) if rank else None, int(code[1]), told)
    failed = _FAILED.findall(log)
    return Summary(None, int(failed[-1])) if failed else None


def last_error(log: str | None) -> str | None:
    """The last line of the last traceback but torchrun's own, e.g. `ModuleNotFoundError: No module named 'x'`.

    What Python ignores, such as an error in a destructor while a process ends for another reason, is no cause.
    """
    found = None
    inside = ignored = False
    for raw in (log or "").splitlines():
        line = _PREFIX.sub("", raw).rstrip()
        if line.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and line and not line[0].isspace():
            if _ERROR.match(line) and "ChildFailedError" not in line and not ignored:
                found = line
            inside = ignored = False
        elif not inside and line.startswith("Exception ignored "):
            ignored = True
        elif not inside and line.startswith(("SyntaxError: ", "IndentationError: ")):
            found = line  # a script that does not parse has no traceback of its own
    return found


def last_line(log: str | None) -> str | None:
    """The last line that says anything, for programs of other make."""
    lines = [line.strip() for line in (log or "").splitlines()]
    return next((line for line in reversed(lines) if line.strip("=-_ ")), None)
