"""Lines over a count, as SVG: enough for a page, and text that a diff shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 180, 16, 40
COLOURS = ("#1f77b4", "#7fb2dd", "#d62728", "#eb9394", "#2ca02c", "#9467bd")


@dataclass(frozen=True)
class Line:
    label: str
    values: Sequence[float]


def plot(lines: Sequence[Line], across: str, up: str) -> str:
    """From zero, so that a slope is seen as large as it is."""
    count = max(len(line.values) for line in lines)
    step = nice(max(max(line.values) for line in lines) / 5)
    top = step * (int(max(max(line.values) for line in lines) / step) + 1)
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(number: float) -> float:
        return LEFT + wide * number / count

    def y(value: float) -> float:
        return TOP + high * (1 - value / top)

    font = 'font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {font}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for turn in range(int(top / step) + 1):
        level = y(turn * step)
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + wide}" y1="{level:.1f}" y2="{level:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{level + 4:.1f}" text-anchor="end">{turn * step:g}</text>')
    marks = range(0, count + 1, max(1, count // 4))
    parts += [f'<text x="{x(at):.1f}" y="{TOP + high + 16}" text-anchor="middle">{at}</text>' for at in marks]
    parts.append(f'<text x="{LEFT + wide / 2:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>')
    parts.append(f'<text x="12" y="{TOP + 4}">{escape(up)}</text>')
    for turn, line in enumerate(lines):
        colour = COLOURS[turn % len(COLOURS)]
        points = " ".join(f"{x(number):.1f},{y(value):.1f}" for number, value in enumerate(line.values, 1))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(
            f'<text x="{LEFT + wide + 8}" y="{TOP + 16 + 18 * turn}" fill="{colour}">{escape(line.label)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def nice(rough: float) -> float:
    """1, 2 or 5 times a power of ten, not below `rough`."""
    power = 1.0
    while power * 10 <= rough:
        power *= 10
    while power > rough:
        power /= 10
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
