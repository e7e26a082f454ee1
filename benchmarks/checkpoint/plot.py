"""The plot of docs/checkpoint-performance.md: what a save costs, by client."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot

from benchmarks.checkpoint import report

PANELS = (
    ("the state is held for, s", report.blocked, "sink"),
    ("until committed, sink, s", report.committed, "sink"),
    ("until committed, 1 Gbit/s, s", report.committed, "shaped"),
    ("client CPU, s/GiB", report.cpu, "sink"),
)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Medians as bars, with the least and the most."""
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "everstep", "font.size": 8}
    rows = report.latest(rows)
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(11, 2.2), sharey=True, layout="constrained")
    peers = list(dict.fromkeys(row["peer"] for row in rows if row["kind"] == "save"))[::-1]
    for axis, (title, number, setting) in zip(axes, PANELS, strict=True):
        for place, peer in enumerate(peers):
            values = report.select(rows, kind="save", setting=setting, peer=peer).of(number)
            if not values:
                continue
            middle = statistics.median(values)
            errors = [[middle - min(values)], [max(values) - middle]]
            axis.barh(place, middle, xerr=errors, color="C0" if peer == report.EVERSTEP else "0.7", capsize=2)
            axis.annotate(f" {middle:.2f}", (max(values), place), va="center")
        axis.set_title(title, fontsize=8)
        axis.set_yticks(range(len(peers)), peers)
        axis.margins(x=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
