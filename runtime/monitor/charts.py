"""Charts as inline SVG: no script, nothing fetched, every word escaped; their colours are the page's, by ``CSS``."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from runtime.monitor.words import count_words, duration_words

WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 14, 42
# Of a timeline the rows of few members are broader.
LEAST_ROW, MOST_ROW, NAME = 20, 36, 84
# More than the pixels of a screen are not seen; of each bucket the least and the greatest stay.
MOST_POINTS = 800
NICE = (1.0, 2.0, 5.0, 10.0)
NICE_S = (1.0, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400)

CSS = """
.chart{width:100%;height:auto;display:block;font:12px system-ui,sans-serif}
@media (max-width:620px){.chart{font-size:17px}}
.chart text{fill:var(--dim)}.chart .grid{stroke:var(--line);stroke-width:1}
.chart .curve{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.chart .t1{stroke:var(--tone1)}.chart .t2{stroke:var(--tone2)}.chart .t3{stroke:var(--tone3);stroke-dasharray:5 4}
.chart .dot{fill:var(--back);stroke-width:2}
.chart .stay{fill:var(--tone1)}.chart .fault{stroke:var(--fault);stroke-width:2}
"""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    name: str
    points: Sequence[Point]
    """In the order of x; finite."""
    tone: int = 1
    dots: bool = False
    """Each point for itself rather than a curve."""


@dataclass(frozen=True)
class Axis:
    label: str
    words: Callable[[float], str] = count_words
    kind: str = "number"
    """number; whole: no tick between whole numbers; time: seconds."""
    from_zero: bool = False


@dataclass(frozen=True)
class Fault:
    """A mark on a chart: where on the x axis, and what it was."""

    x: float
    words: str


@dataclass(frozen=True)
class Row:
    """One member's stays on a timeline, each from and to seconds."""

    name: str
    stays: Sequence[tuple[float, float]]
    faults: Sequence[Fault] = field(default=())


def line_chart(series: Sequence[Series], x: Axis, y: Axis, faults: Sequence[Fault] = ()) -> str:
    """A chart of curves over one axis; without any point a line that says so."""
    points = [point for one in series for point in one.points]
    if not points:
        return f'<p class="none">no {escape(y.label)} is known</p>'
    x_low, x_high = _range([point[0] for point in points], x)
    y_low, y_high = _range([point[1] for point in points], y)

    def place(point: Point) -> tuple[float, float]:
        across = LEFT + (point[0] - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (point[1] - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return across, down

    parts = []
    for tick in ticks(y_low, y_high, y.kind, 5):
        _, down = place((x_low, tick))
        parts.append(f'<path class="grid" d="M{LEFT} {down:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 6, down + 4, y.words(tick), "end"))
    for tick in ticks(x_low, x_high, x.kind, 5):
        across, _ = place((tick, y_low))
        parts.append(_text(across, HEIGHT - BOTTOM + 18, x.words(tick), "middle"))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 4, x.label, "end"))
    for fault in faults:
        across = place((min(max(fault.x, x_low), x_high), y_low))[0]
        parts.append(_fault(across, HEIGHT - BOTTOM - 8, 8, fault))
    for one in series:
        parts += _drawn(one, place)
    named = ", ".join(one.name for one in series)
    return _svg(HEIGHT, f"{named} against {x.label}", parts)


def timeline(rows: Sequence[Row], start: float, end: float) -> str:
    """Who was there when, one row each, its faults marked. Seconds on the axis, counted from ``start``."""
    if not rows:
        return '<p class="none">no member is known</p>'
    broad = max(LEAST_ROW, min(MOST_ROW, (HEIGHT - TOP - BOTTOM) // len(rows)))
    height = TOP + broad * len(rows) + BOTTOM
    span = max(end - start, 1.0)

    def place(time: float) -> float:
        return NAME + min(max((time - start) / span, 0.0), 1.0) * (WIDTH - NAME - RIGHT)

    parts = []
    for tick in ticks(0.0, span, "time", 5):
        across = place(start + tick)
        parts.append(f'<path class="grid" d="M{across:.1f} {TOP}V{height - BOTTOM}"/>')
        parts.append(_text(across, height - BOTTOM + 18, duration_words(tick), "middle"))
    for index, row in enumerate(rows):
        down = TOP + broad * index
        parts.append(_text(NAME - 8, down + broad / 2 + 4, row.name, "end"))
        for came, gone in row.stays:
            place_of = (
                f'x="{place(came):.1f}" y="{down + broad // 4}" width="{max(place(gone) - place(came), 1.5):.1f}"'
            )
            parts.append(f'<rect class="stay" {place_of} height="{broad // 2}" rx="2"/>')
        for fault in row.faults:
            parts.append(_fault(place(fault.x), down + 2, broad - 4, fault))
    return _svg(height, "members over time", parts)


def ticks(low: float, high: float, kind: str, most: int) -> list[float]:
    """Round numbers from low to high, at most ``most`` + 1 of them; at least one."""
    least_step = (high - low) / most
    if kind == "time":
        step = next((nice for nice in NICE_S if nice >= least_step), 86400.0 * math.ceil(least_step / 86400))
    else:
        power = 10.0 ** math.floor(math.log10(least_step))
        step = next((nice * power for nice in NICE if nice * power >= least_step * 0.999), 10 * power)
        step = max(1.0, step) if kind == "whole" else step
    first = math.ceil(low / step - 1e-9)
    found = [(first + number) * step for number in range(most + 1)]
    return [tick for tick in found if low - step * 1e-9 <= tick <= high + step * 1e-9] or [low]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many points of a curve, with the extremes that the eye would have seen."""
    if len(points) <= most:
        return list(points)
    n_buckets = most // 2
    kept: list[Point] = []
    for bucket in range(n_buckets):
        part = range(len(points) * bucket // n_buckets, len(points) * (bucket + 1) // n_buckets)
        extremes = {min(part, key=lambda at: points[at][1]), max(part, key=lambda at: points[at][1])}
        kept += [points[at] for at in sorted(extremes)]
    return kept


def _range(values: Sequence[float], axis: Axis) -> tuple[float, float]:
    """What an axis spans: never nothing, also for numbers so large that one more is no other number."""
    low, high = min(values), max(values)
    if axis.from_zero:
        low = min(low, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = max(abs(high) * 0.1, 1.0 if axis.kind != "number" else 1e-3)
        return (low if axis.from_zero and low == 0 else low - margin), high + margin
    return low, high


def _drawn(series: Series, place: Callable[[Point], tuple[float, float]]) -> list[str]:
    places = [place(point) for point in thinned(series.points)]
    if series.dots or len(places) == 1:
        radius = 3.5 if len(places) < 60 else 2
        return [f'<circle class="dot t{series.tone}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>' for x, y in places]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    return [f'<path class="curve t{series.tone}" d="M{path}"/>'] if places else []


def _fault(x: float, y: float, height: float, fault: Fault) -> str:
    return f'<path class="fault" d="M{x:.1f} {y}v{height}"><title>{escape(fault.words)}</title></path>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(height: int, label: str, parts: Sequence[str]) -> str:
    inside = "".join(parts)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{inside}</svg>'
