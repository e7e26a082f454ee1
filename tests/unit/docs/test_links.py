"""Links of the docs lead somewhere: to files, to headings, and files that are named in passing exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
PLACES = [
    ROOT,
    *(ROOT / "operator/src" / name for name in ("", "everstep_operator")),
    *(ROOT / "trainer_image/src" / name for name in ("", "everstep")),
]
"""Where a path that a page names may begin."""
NAMED = re.compile(r"`([A-Za-z_]+(?:/[A-Za-z_.0-9-]+)+\.(?:py|yaml|json|md|mk))`")
ELSEWHERE = re.compile(r"progress/|checkpoints/|catalog\.d/|^profiles/|weights/step")
"""Keys in storage and files in pods look like paths too."""


def prose(page: Path) -> str:
    """Without blocks of code."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    """Within the repository."""
    found = LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page)))
    return [target for target in found if not target.startswith(("http://", "https://"))]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(prose(page)))
    return {text.strip().replace(" ", "-") for text in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), target
        assert ROOT in found.parents, f"{target} is outside of the repository"
        if anchor:
            assert anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    for name in NAMED.findall(prose(page)):
        if not ELSEWHERE.search(name):
            assert any((place / name).exists() for place in (page.parent, *PLACES)), name


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, new = set(), [ROOT / "README.md"]
    while new:
        page = new.pop()
        reached.add(page)
        for target in links(page):
            if target.startswith("#"):
                continue
            found = (page.parent / target.partition("#")[0]).resolve()
            pages = sorted(found.glob("*.md")) if found.is_dir() else [found]
            new += [each for each in pages if each.suffix == ".md" and each.is_file() and each not in reached]
    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in reached] == []
