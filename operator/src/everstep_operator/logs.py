"""Log lines that say which job and attempt they are about, for machines or for people."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

_job: ContextVar[tuple[str, str] | None] = ContextVar("job", default=None)
_attempt: ContextVar[int | None] = ContextVar("attempt", default=None)

NOISY = ("aiohttp.access", "asyncio", "boto3", "botocore", "kopf", "kubernetes", "urllib3", "kube_config")
"""Libraries whose lines below WARNING say nothing about jobs."""


@contextmanager
def about(namespace: str, job: str, attempt: int = 0) -> Iterator[None]:
    """Lines logged inside are about this job."""
    first, second = _job.set((namespace, job)), _attempt.set(attempt or None)
    try:
        yield
    finally:
        _job.reset(first)
        _attempt.reset(second)


def at_attempt(attempt: int) -> None:
    """From here on, inside `about`, lines are about this attempt."""
    _attempt.set(attempt or None)


class _Context(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.namespace, record.job = _job.get() or (None, None)
        record.attempt = _attempt.get()
        return True


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": _time(record), "level": record.levelname, "logger": record.name}
        for name in ("namespace", "job", "attempt"):
            value = getattr(record, name, None)
            if value is not None:
                line[name] = value
        line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class ConsoleFormatter(logging.Formatter):
    """Time, level, job, attempt, message."""

    def format(self, record: logging.LogRecord) -> str:
        namespace, job, attempt = (getattr(record, name, None) for name in ("namespace", "job", "attempt"))
        subject = f" [{namespace}/{job}{f' attempt {attempt}' if attempt else ''}]" if job else ""
        line = f"{_time(record)} {record.levelname:7}{subject} {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(style: Literal["json", "console"], level: str) -> None:
    """Send everything to standard error in one style."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else ConsoleFormatter())
    handler.addFilter(_Context())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
