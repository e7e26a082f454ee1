"""Pages of the documentation whose Python blocks run as they stand, one after the other, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: Path, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def run(page: Path) -> list[str]:
    """Run the page; returns its blocks."""
    found = blocks(page)
    namespace: dict[str, object] = {"__name__": "page"}
    for block in found:
        exec(compile(block, str(page), "exec"), namespace)
    return found
