"""Line charts as SVG text, without a plotting library and without a script.

A chart is drawn on a linear axis and, where its values allow, on a logarithmic one; each line is
drawn as it is and smoothed. The page's style shows one of them (megalite/tools/report/style.py).
"""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 76, 12, 12, 40
MOST_POINTS = 600  # of a line; more are thinned to the least and largest of each stretch
SMOOTHING = 0.9  # weight of what came before, in a smoothed line
FEWEST_SMOOTHED = 20  # points; a line of fewer is drawn as it is
DASHES = ("", "6 3", "2 3", "8 3 2 3")
NUM_COLOURS = 6
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: shown where the pointer rests on the line.
        points: (x, y), x ascending; what is not finite is left out.
        run: number of the run, which chooses the colour and hides the line with its run.
        dash: number of the metric among the chart's, which chooses the dashes.
    """

    name: str
    points: Points
    run: int = 0
    dash: int = 0


@dataclass(frozen=True)
class Axis:
    """Values of one axis on a stretch of pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (self._scaled(one) for one in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Three to nine round values; on a logarithmic axis powers of ten where it has two."""
        return self._powers() or round_ticks(self.low, self.high)

    def tick_texts(self) -> list[tuple[float, str]]:
        """The ticks and what is written at them, which tells them apart."""
        ticks = self.ticks()
        step = 0.0 if self._powers() or len(ticks) < 2 else ticks[1] - ticks[0]
        return [(value, tick_text(value, step)) for value in ticks]

    def _powers(self) -> list[float]:
        """Powers of ten on a logarithmic axis that has two."""
        if not self.is_log:
            return []
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        every = (last - first) // 6 + 1
        return [10.0**power for power in range(first, last + 1, every)] if last > first else []

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.is_log else value


def line_chart(title: str, unit: str, lines: Sequence[Line], x_name: str = "step") -> str:
    """Draw lines into one chart.

    Args:
        title: written above the chart.
        unit: of y, written along its axis.
        lines: what is drawn.
        x_name: written along the x axis.

    Returns:
        A ``<figure>`` element; with a note where there is nothing to draw.
    """
    kept = [_thinned(line) for line in lines if any(_is_finite(point) for point in line.points)]
    caption = f"<figcaption>{html.escape(title)}</figcaption>"
    if not kept:
        return f"<figure>{caption}<p>no values</p></figure>"
    drawings = [_drawing(kept, unit, x_name, is_log=False)]
    if all(y > 0 for line in kept for _, y in line.points):
        drawings.append(_drawing(kept, unit, x_name, is_log=True))
    else:
        drawings = [drawing.replace('class="linear"', 'class="both"') for drawing in drawings]
    return f"<figure>{caption}{''.join(drawings)}</figure>"


def smoothed(points: Points) -> list[tuple[float, float]]:
    """A running mean that forgets what is older, without the bias of its start.

    Few points are given back as they are.

    Source: Kingma & Ba 2015, arXiv:1412.6980, section 3.
    """
    if len(points) < FEWEST_SMOOTHED:
        return list(points)
    total, weight, out = 0.0, 0.0, []
    for x, y in points:
        total = SMOOTHING * total + (1 - SMOOTHING) * y
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        out.append((x, total / weight))
    return out


def round_ticks(low: float, high: float) -> list[float]:
    """Three to nine multiples of 1, 2 or 5 times a power of ten between two values."""
    rough = (high - low) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def tick_text(value: float, step: float = 0.0) -> str:
    """A number in few characters, with a letter for thousands, millions and billions.

    Args:
        value: the number.
        step: distance to the next tick, which the text must tell apart; 0: three digits.
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{_digits(value / size, step / size)}{letter}"
    if value and abs(value) < 1e-2 and step < 1e-3:
        places = max(1, _power(abs(value)) - _power(step)) if step else 1
        return f"{value:.{places}e}".replace("e-0", "e-")
    return _digits(value, step)


def _digits(value: float, step: float) -> str:
    """A number of up to three digits before the point, told apart from one a step away."""
    if not step:
        return f"{value:.3g}"
    return f"{value:.{max(0, -_power(step))}f}"


def _power(value: float) -> int:
    """The power of ten of a number's first digit."""
    return math.floor(math.log10(value) + 1e-9)


def _is_finite(point: tuple[float, float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _thinned(line: Line) -> Line:
    """A line of finite points, at most MOST_POINTS of them: spikes stay."""
    points = [point for point in line.points if _is_finite(point)]
    if len(points) > MOST_POINTS:
        stretch = math.ceil(2 * len(points) / MOST_POINTS)
        parts = (points[start : start + stretch] for start in range(0, len(points), stretch))
        points = [point for part in parts for point in _ends(part)]
    return Line(line.name, points, line.run, line.dash)


def _ends(points: Points) -> Iterable[tuple[float, float]]:
    """The least and the largest of some points, in their order."""
    return sorted(
        {min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])}
    )


def _across(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    pad = 1.0 if low == high else 0.0
    return Axis(low - pad, high + pad, LEFT, WIDTH - RIGHT)


def _up(values: Sequence[float], is_log: bool) -> Axis:
    """The axis of values, so wide that its ticks differ in four digits."""
    low, high = min(values), max(values)
    least = 0.2 if low == high else 0.01
    pad = max(0.0, (least * max(abs(low), abs(high)) - (high - low)) / 2)
    if low == high == 0:
        pad = 1.0
    return Axis(low - pad, high + pad, HEIGHT - BOTTOM, TOP, is_log)


def _drawing(lines: Sequence[Line], unit: str, x_name: str, is_log: bool) -> str:
    across = _across([x for line in lines for x, _ in line.points])
    up = _up([y for line in lines for _, y in line.points], is_log)
    parts = [_grid(across, up), _names(unit, x_name)]
    for line in lines:
        parts.append(_path(line, line.points, across, up, "raw"))
        parts.append(_path(line, smoothed(line.points), across, up, "smooth"))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="{"log" if is_log else "linear"}" '
        f'xmlns="http://www.w3.org/2000/svg" role="img">{"".join(parts)}</svg>'
    )


def _path(line: Line, points: Points, across: Axis, up: Axis, kind: str) -> str:
    places = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in points)
    if len(points) == 1:  # a line of one point shows nothing
        places = f"{places} {across.at(points[0][0]) + 3:.1f},{up.at(points[0][1]):.1f}"
    colour, dash = line.run % NUM_COLOURS, DASHES[line.dash % len(DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<polyline class="{kind} run-{line.run} colour-{colour}"{dashes} points="{places}">'
        f"<title>{html.escape(line.name)}</title></polyline>"
    )


def _grid(across: Axis, up: Axis) -> str:
    parts = []
    for value, text in up.tick_texts():
        place = up.at(value)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'
            f'<text x="{LEFT - 5}" y="{place + 4:.1f}" text-anchor="end">'
            f"{text}</text>"
        )
    ticks = across.tick_texts()
    for value, text in ticks:
        if across.high - across.low < len(ticks) and value != round(value):
            continue  # there is no half of a step
        parts.append(
            f'<text x="{across.at(value):.1f}" y="{HEIGHT - BOTTOM + 16}" '
            f'text-anchor="middle">{text}</text>'
        )
    return "".join(parts)


def _names(unit: str, x_name: str) -> str:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle" '
        f'class="axis">{html.escape(x_name)}</text><text x="12" y="{middle:.0f}" '
        f'text-anchor="middle" transform="rotate(-90 12 {middle:.0f})" class="axis">'
        f"{html.escape(unit)}</text>"
    )
