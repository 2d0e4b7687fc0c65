"""A bar chart of tables as SVG, for the first page of the README."""

from collections.abc import Mapping
from html import escape

_WIDTH, _NAMES, _ROW, _BAR, _TITLE = 760, 330, 22, 16, 34
_OURS, _OTHERS = "#d97706", "#8b98a9"
#: A gray that can be read on a white and on a dark page; an SVG in an `img` does not know the page's color.
_INK = "#7d8590"


def bar_chart(groups: Mapping[str, Mapping[str, float]], unit: str, ours: str) -> str:
    """Return an SVG with a group of bars for each title, the bars of each drawn to the scale of its largest.

    Args:
        groups: for each title the values of its bars by name.
        unit: what the values count.
        ours: how names start whose bars stand out.
    """
    parts, y = [], 0
    for title, bars in groups.items():
        y += _TITLE
        parts.append(_text(0, y - 10, f"{title} ({unit})", weight="600"))
        longest = max(bars.values())
        for name, value in bars.items():
            width = (_WIDTH - _NAMES - 70) * value / longest
            color = _OURS if name.startswith(ours) else _OTHERS
            parts.append(_text(_NAMES - 8, y + _BAR - 4, name, anchor="end"))
            parts.append(f'<rect x="{_NAMES}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2" fill="{color}"/>')
            parts.append(_text(_NAMES + width + 6, y + _BAR - 4, f"{value:,.0f}" if value >= 20 else f"{value:.1f}"))
            y += _ROW
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}">'
    return f"{head}\n" + "\n".join(parts) + "\n</svg>\n"


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "400") -> str:
    font = f'font-family="system-ui, sans-serif" font-size="12" font-weight="{weight}" fill="{_INK}"'
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" {font}>{escape(text)}</text>'
