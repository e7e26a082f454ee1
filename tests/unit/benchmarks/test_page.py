"""What a benchmark writes into a page stays between its marks."""

from __future__ import annotations

import pytest

from benchmarks import page

BEGIN, END = "<!-- begin -->", "<!-- end -->"


def test_only_the_generated_part_of_the_page_changes() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    made = page.put(text, BEGIN, END, "new")
    assert made == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert page.put(made, BEGIN, END, "new") == made


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no part between"):
        page.put("page", BEGIN, END, "new")
