"""docs/troubleshooting.md as something to test with: the messages that it lists, by the reason above them."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
_PLACEHOLDER = re.compile(r"<[^<>]+>")


def documented(reason: str) -> list[str]:
    """The messages of one reason."""
    _, mark, section = PAGE.read_text(encoding="utf-8").partition(f"### `{reason}`")
    assert mark, f"docs/troubleshooting.md does not know {reason}"
    return indented(section.split("\n## ")[0].split("\n### ")[0])


def indented(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def explains(reason: str, message: str) -> bool:
    """Whether the page lists this message under that reason; fails with what it lists."""
    known = documented(reason)
    assert any(re.fullmatch(_pattern(each), message, re.DOTALL) for each in known), f"{message}\nis none of\n{known}"
    return True


def _pattern(line: str) -> str:
    return ".+".join(re.escape(part) for part in _PLACEHOLDER.split(line))
