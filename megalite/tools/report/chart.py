"""Line charts as SVG text, without a plotting library."""

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, MARGIN = 420, 240, 56
COLOURS = ("#2563a8", "#c8541f", "#3c8c4a", "#8a4ca0")
TICKS = 4
Points = Sequence[tuple[float, float]]


def line_chart(title: str, unit: str, series: Mapping[str, Points]) -> str:
    """Draw named series of (x, y) points; points that are not finite are left out.

    Args:
        title: written above the chart.
        unit: of y, written beside the title.
        series: points by name, x ascending.

    Returns:
        An ``<svg>`` element; a note where there is nothing to draw.
    """
    finite = {name: _finite(points) for name, points in series.items()}
    kept = {name: points for name, points in finite.items() if points}
    heading = f"{title} ({unit})" if unit else title
    label = f'<text x="{MARGIN}" y="18" class="title">{html.escape(heading)}</text>'
    if not kept:
        return _svg(label + f'<text x="{MARGIN}" y="60">no values</text>')
    x_range = _range([x for points in kept.values() for x, _ in points])
    y_range = _range([y for points in kept.values() for _, y in points])
    shown: list[str] = []
    parts = [label, _axes(x_range, y_range)]
    for number, (name, points) in enumerate(kept.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{_across(x, x_range):.1f},{_up(y, y_range):.1f}" for x, y in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        )
        if len(kept) > 1:
            shown.insert(0, f'<tspan fill="{colour}">&#160;&#160;{html.escape(name)}</tspan>')
    if shown:
        names = "".join(reversed(shown))
        parts.append(f'<text x="{WIDTH - 12}" y="18" text-anchor="end">{names}</text>')
    return _svg("".join(parts))


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def tick_text(value: float) -> str:
    """A number in few characters, with a letter for thousands, millions and billions."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    if value and abs(value) < 1e-2:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.3g}"


def _whole(value: float, bounds: tuple[float, float]) -> float:
    """A tick on the axis of steps: a whole number where the axis is long enough."""
    return float(round(value)) if bounds[1] - bounds[0] >= TICKS else value


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    return low, high


def _across(x: float, bounds: tuple[float, float]) -> float:
    return MARGIN + (x - bounds[0]) / (bounds[1] - bounds[0]) * (WIDTH - MARGIN - 12)


def _up(y: float, bounds: tuple[float, float]) -> float:
    return HEIGHT - 24 - (y - bounds[0]) / (bounds[1] - bounds[0]) * (HEIGHT - 24 - 30)


def _axes(x_range: tuple[float, float], y_range: tuple[float, float]) -> str:
    parts = []
    for tick in range(TICKS + 1):
        y = y_range[0] + (y_range[1] - y_range[0]) * tick / TICKS
        x = _whole(x_range[0] + (x_range[1] - x_range[0]) * tick / TICKS, x_range)
        height, across = _up(y, y_range), _across(x, x_range)
        parts.append(
            f'<line x1="{MARGIN}" x2="{WIDTH - 12}" y1="{height:.1f}" y2="{height:.1f}" '
            f'class="grid"/><text x="{MARGIN - 5}" y="{height + 4:.1f}" text-anchor="end">'
            f'{tick_text(y)}</text><text x="{across:.1f}" y="{HEIGHT - 8}" '
            f'text-anchor="middle">{tick_text(x)}</text>'
        )
    return "".join(parts)


def _svg(content: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'xmlns="http://www.w3.org/2000/svg" role="img">{content}</svg>'
    )
