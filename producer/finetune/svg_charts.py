"""SVG line charts and shaded HTML tables for reports, without a library."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 14, 34
#: Of the names above a chart: their rows, the space between two, the width of a letter at most.
_ROW, _GAP, _LETTER = 18, 20, 7
_COLORS = ("#1f6feb", "#d1480c", "#2b8a3e", "#8250df", "#bf3989", "#6e7781")


class Series(NamedTuple):
    """A named curve; points without a value are left out."""

    name: str
    points: Sequence[tuple[float, float | None]]


class _Scale(NamedTuple):
    """A linear scale from values to coordinates."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)


def line_chart(series: Sequence[Series]) -> str:
    """Return an SVG with the curves, axes and a legend; an empty text without points."""
    kept = [Series(s.name, [(x, y) for x, y in s.points if y is not None and math.isfinite(y)]) for s in series]
    kept = [one for one in kept if one.points]
    if not kept:
        return ""
    xs = [x for one in kept for x, _ in one.points]
    ys = [y for one in kept for _, y in one.points if y is not None]
    names, below = _names(kept)
    height = _HEIGHT + below
    across = _Scale(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    up = _Scale(*_padded(min(ys), max(ys)), height - _BOTTOM, _TOP + below)
    parts = [_axes(across, up, height), *(_curve(one, across, up, n) for n, one in enumerate(kept)), names]
    return f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img">{"".join(parts)}</svg>'


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _axes(across: _Scale, up: _Scale, height: int) -> str:
    lines = []
    for value in _ticks(up.low, up.high):
        y = up.at(value)
        lines.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" {_GRID}/>')
        lines.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" {_FONT}>{value:.4g}</text>')
    for value in _ticks(across.low, across.high, finest=1.0):
        x = across.at(value)
        lines.append(f'<text x="{x:.1f}" y="{height - 14}" text-anchor="middle" {_FONT}>{value:.4g}</text>')
    lines.append(f'<text x="{_WIDTH - _RIGHT}" y="{height - 2}" text-anchor="end" {_FONT}>step</text>')
    return "".join(lines)


#: In the page's own ink, be it dark or light.
_GRID = 'stroke="currentColor" stroke-opacity=".15"'
_FONT = 'font-size="11" fill="currentColor" fill-opacity=".7" font-family="system-ui, sans-serif"'


def _ticks(low: float, high: float, finest: float = 0.0) -> list[float]:
    """Return about five round numbers between low and high, at least `finest` apart."""
    if high <= low:
        return [low]
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = max(finest, next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw))
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step) + 1)]


def _curve(one: Series, across: _Scale, up: _Scale, number: int) -> str:
    color = _COLORS[number % len(_COLORS)]
    positions = [(across.at(x), up.at(y)) for x, y in one.points if y is not None]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in positions)
    line = f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>'
    few = positions if len(positions) <= 30 else []
    return line + "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{color}"/>' for x, y in few)


def _names(series: Sequence[Series]) -> tuple[str, int]:
    """Return the legend, in as many rows as it needs, and its height."""
    parts, x, y = [], _LEFT, 2
    for number, one in enumerate(series):
        width = 15 + _LETTER * len(one.name)
        if x > _LEFT and x + width > _WIDTH - _RIGHT:
            x, y = _LEFT, y + _ROW
        parts.append(f'<rect x="{x}" y="{y}" width="10" height="10" fill="{_COLORS[number % len(_COLORS)]}"/>')
        parts.append(f'<text x="{x + 15}" y="{y + 9}" {_FONT}>{escape(one.name)}</text>')
        x += width + _GAP
    return "".join(parts), y + _ROW - _TOP + _GAP // 2


def shaded_table(names: Sequence[str], rows: Sequence[Sequence[int]]) -> str:
    """Return a confusion matrix, label (row) against prediction (column), each row shaded by its shares."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(_cell(count, sum(row)) for count in row)}</tr>"
        for name, row in zip(names, rows, strict=True)
    )
    return f"<table><tr><th>label \\ predicted</th>{head}</tr>{body}</table>"


def _cell(count: int, total: int) -> str:
    share = count / total if total else 0.0
    ink = ";color:#fff" if share > 0.6 else ""
    return f'<td class="n" style="background:rgba(31,111,235,{share:.2f}){ink}">{count:,}</td>'
