"""What makes the plot of what the guards found."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks.guards.plot import Line, nice, plot


@pytest.mark.parametrize(("rough", "found"), [(0.03, 0.05), (1, 1), (1.2, 2), (30, 50), (60, 100), (100, 100)])
def test_steps_of_an_axis_are_round(rough: float, found: float) -> None:
    assert nice(rough) == pytest.approx(found)


def test_the_plot_is_an_image_with_a_line_for_each() -> None:
    drawn = ElementTree.fromstring(plot([Line("a & b", [1, 2, 3]), Line("c", [3, 2.5, 2])], "saves", "MiB"))
    lines = [element for element in drawn if element.tag.endswith("polyline")]
    assert [len(line.attrib["points"].split()) for line in lines] == [3, 3]
    assert "a & b" in [element.text for element in drawn]
