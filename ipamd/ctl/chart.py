"""Draws a line chart as SVG without a library, because nodes have no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 46, 48

# Okabe and Ito's palette, which colour-blind readers can distinguish.
COLOURS = ("#0072b2", "#009e73", "#d55e00", "#cc79a7")
LIMIT = "#b00020"


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    points: Sequence[tuple[float, float]]


def svg(title: str, x_name: str, y_name: str, lines: Sequence[Line], limit: tuple[float, str]) -> str:
    """`limit`: a value of y to draw a line at, and its name."""
    right = max(x for line in lines for x, _ in line.points) or 1
    step = _step(max(limit[0], *(y for line in lines for _, y in line.points)) * 1.05)
    top = step * math.ceil(max(limit[0], *(y for line in lines for _, y in line.points)) * 1.05 / step)
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return round(LEFT + x / right * plot_width, 1), round(TOP + (1 - y / top) * plot_height, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for number in range(round(top / step) + 1):
        x, y = at(0, number * step)
        parts.append(f'<line x1="{x}" x2="{LEFT + plot_width}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end">{number * step:g}</text>')
    for tick in range(0, math.floor(right) + 1, max(math.ceil(right / 12), 1)):
        x, y = at(tick, 0)
        parts.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle">{tick}</text>')
    x, y = at(right / 2, 0)
    parts.append(f'<text x="{x}" y="{y + 38}" text-anchor="middle">{escape(x_name)}</text>')
    parts.append(
        f'<text transform="translate(16 {TOP + plot_height / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_name)}</text>"
    )
    labels = [(at(0, limit[0])[1], limit[1], LIMIT)]
    _, y = at(0, limit[0])
    parts.append(
        f'<line x1="{LEFT}" x2="{LEFT + plot_width}" y1="{y}" y2="{y}" stroke="{LIMIT}" stroke-width="2" '
        'stroke-dasharray="6 4"/>'
    )
    for line, colour in zip(lines, COLOURS, strict=False):
        points = " ".join("{},{}".format(*at(*point)) for point in line.points)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        labels.append((at(*line.points[-1])[1], line.name, colour))
    below = -math.inf
    for y, name, colour in sorted(labels):
        below = max(y + 4, below + 15)  # names that would overlap move down
        parts.append(f'<text x="{LEFT + plot_width + 8}" y="{below:.1f}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _step(top: float) -> float:
    """A round number that goes four to eight times into `top`."""
    power = math.pow(10, math.floor(math.log10(max(top, 1) / 4)))
    return next(power * factor for factor in (1, 2, 5, 10) if top / (power * factor) <= 8)
