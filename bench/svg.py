"""Charts as inline SVG: bars, and lines over an axis of tens. No library, no script, nothing fetched."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 14, 40
# Colours that also people with a colour deficiency tell apart (Okabe and Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
ROW = 22
LABEL_WIDTH = 340

Points = Sequence[tuple[float, float]]


def short(value: float) -> str:
    """1,500 as 1.5k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def bars(rows: Mapping[str, float], *, unit: str = "", most: float | None = None) -> str:
    """A horizontal bar a row; empty where there are none."""
    if not rows:
        return ""
    most = most or max(rows.values()) or 1.0
    room = WIDTH - LABEL_WIDTH - 80
    parts = []
    for index, (label, value) in enumerate(rows.items()):
        y = index * ROW
        width = max(1.0, min(1.0, value / most) * room)
        parts.append(
            f'<text x="{LABEL_WIDTH - 8}" y="{y + 15}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{LABEL_WIDTH}" y="{y + 3}" width="{width:.1f}" height="{ROW - 6}" fill="{COLOURS[0]}"/>'
            f'<text x="{LABEL_WIDTH + width + 6:.1f}" y="{y + 15}">{short(value)}{escape(unit)}</text>'
        )
    return _svg("".join(parts), len(rows) * ROW + 4)


def lines(series: Mapping[str, Points], *, x: str, y: str, logarithmic: bool = True) -> str:
    """A line a series over `x` (above zero, in powers of ten); y in powers of ten too, or from 0. Empty without points."""
    points = [point for one in series.values() for point in one if point[0] > 0 and point[1] > 0]
    if not points:
        return ""
    across = Scale([point[0] for point in points], LEFT, WIDTH - RIGHT, logarithmic=True)
    up = Scale([point[1] for point in points], HEIGHT - BOTTOM, TOP, logarithmic=logarithmic)
    parts = [_grid(across, up, x, y)]
    for found, colour in zip(series.values(), COLOURS * (len(series) // len(COLOURS) + 1), strict=False):
        places = [(across(one), up(two)) for one, two in sorted(found) if one > 0 and two > 0]
        if not places:
            continue
        path = " ".join(f"{one:.1f},{two:.1f}" for one, two in places)
        dots = "".join(
            f'<circle cx="{one:.1f}" cy="{two:.1f}" r="3" fill="{colour}"/>' for one, two in places
        )
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}')
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in zip(series, COLOURS * (len(series) // len(COLOURS) + 1), strict=False)
    )
    return f'{_svg("".join(parts), HEIGHT)}<p class="legend">{legend}</p>'


class Scale:
    """Values to places on the picture."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, logarithmic: bool) -> None:
        self._logarithmic = logarithmic
        self._start, self._end = start, end
        if logarithmic:
            self._low = math.floor(math.log10(min(values)))
            self._high = max(math.ceil(math.log10(max(values))), self._low + 1)
            self.marks = [10.0**power for power in range(self._low, self._high + 1)]
        else:
            self._low, self._high = 0, 1.1 * max(values)  # type: ignore[assignment]
            self.marks = [self._high * share / 4.4 for share in range(5)]

    def __call__(self, value: float) -> float:
        place = math.log10(value) if self._logarithmic else value
        return self._start + (place - self._low) / (self._high - self._low) * (self._end - self._start)


def _grid(across: Scale, up: Scale, x: str, y: str) -> str:
    parts = []
    for mark in across.marks:
        at = across(mark)
        parts.append(
            f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}" class="grid"/>'
            f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{short(mark)}</text>'
        )
    for mark in up.marks:
        at = up(mark)
        parts.append(
            f'<line x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" class="grid"/>'
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{short(mark)}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>'
        f'<text x="14" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2})">{escape(y)}</text>'
    )
    return "".join(parts)


def _svg(inner: str, height: float) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" role="img">{inner}</svg>'
    )
