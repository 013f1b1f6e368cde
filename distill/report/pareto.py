"""Error rate, size, speed and delay of every model in one picture: which ones are beaten by none of the others.

Only the standard library is imported; the picture is plain SVG.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.report.recognition import Run

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 440, 64, 56, 48, 150
OFFLINE = "#777777"
DELAYS = ((250.0, "#1b7837"), (500.0, "#2166ac"), (1000.0, "#b35806"), (math.inf, "#7f0000"))  # ms at most: colour


@dataclass(frozen=True)
class Point:
    """One model run one way: error rate (%), parameters, RTF on one thread, mean look-ahead in ms (None: offline)."""

    name: str
    mode: str
    runtime: str
    wer: float
    params: int
    rtf: float
    delay: float | None

    @property
    def label(self) -> str:
        return f"{self.name}, {self.runtime}" + ("" if self.mode == "streaming" else ", offline")

    def costs(self) -> tuple[float, ...]:
        """All that is better when smaller."""
        return self.wer, float(self.params), self.rtf, math.inf if self.delay is None else self.delay


def points(runs: Iterable[Run], test_set: str, method: str) -> list[Point]:
    """Every timed way to run a model whose error rate is known; of int8 what was decoded with --runtime int8."""
    found = []
    for run in runs:
        for row in (run.timing or {}).get("rows", ()):
            mode = f"{row['mode']}-int8" if row["runtime"] == "int8" else row["mode"]
            decoding = run.decoding(test_set, mode, method)
            if decoding is None:
                continue
            delay = decoding["lookahead_mean_ms"] if row["mode"] == "streaming" else None
            found.append(Point(run.name, row["mode"], row["runtime"], decoding["wer"], run.size, row["rtf"], delay))
    return found


def unbeaten(found: Sequence[Point]) -> set[Point]:
    """The points that no other one equals or betters in everything."""
    return {
        point
        for point in found
        if not any(other.costs() != point.costs() and _no_worse(other, point) for other in found)
    }


def _no_worse(one: Point, other: Point) -> bool:
    return all(a <= b for a, b in zip(one.costs(), other.costs()))


def svg(found: Sequence[Point], title: str) -> str:
    """Error rate over RTF (both to the left and down is better); areas are parameters, colours are delays."""
    x, y = (
        _Axis([p.rtf for p in found], LEFT, WIDTH - RIGHT, True),
        _Axis([p.wer for p in found], HEIGHT - BOTTOM, TOP, False),
    )
    best, largest = unbeaten(found), max(p.params for p in found)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12"',
        ' font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{html.escape(title)}</text>',
        *_grid(x, y),
    ]
    labels = _Labels()
    for point in sorted(found, key=lambda p: -p.params):
        radius = 4 + 14 * math.sqrt(point.params / largest)
        parts.append(_mark(point, x(point.rtf), y(point.wer), radius, point in best))
        labels.add(point.label, x(point.rtf), y(point.wer), radius)
    return "\n".join([*parts, *labels.parts, *_legend(), "</svg>"]) + "\n"


class _Axis:
    """Values to pixels, with round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool) -> None:
        self.log, self.start, self.end = log, start, end
        low, high = self._scaled(min(values)), self._scaled(max(values))
        margin = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
        self.low, self.high = low - margin, high + margin

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def __call__(self, value: float) -> float:
        share = (self._scaled(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the axis."""
        if self.log:
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            wanted = [m * 10.0**d for d in decades for m in (1, 2, 5)]
            return [v for v in wanted if self.low <= math.log10(v) <= self.high]
        step = 10 ** math.floor(math.log10((self.high - self.low) / 2))
        step = next(step * m for m in (1, 2, 5, 10) if (self.high - self.low) / (step * m) <= 8)
        first = math.ceil(max(0.0, self.low) / step)
        return [step * k for k in range(first, math.floor(self.high / step) + 1)]


def _grid(x: _Axis, y: _Axis) -> list[str]:
    parts = []
    for value in x.ticks():
        parts.append(_line(x(value), TOP, x(value), HEIGHT - BOTTOM))
        parts.append(f'<text x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:.3g}</text>')
    for value in y.ticks():
        parts.append(_line(LEFT, y(value), WIDTH - RIGHT, y(value)))
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    across = f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">real-time factor, one thread (log)</text>'
    up = f'<text transform="translate(18 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">word error rate (%)</text>'
    return [*parts, across, up]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#dddddd") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _mark(point: Point, x: float, y: float, radius: float, best: bool) -> str:
    edge = ' stroke="black" stroke-width="2"' if best else ""
    about = f"{point.label}: WER {point.wer:.2f} %, {point.params / 1e6:.2f} M, RTF {point.rtf:.4f}"
    circle = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{_colour(point.delay)}" fill-opacity="0.65"{edge}>'
    )
    return f"{circle}<title>{html.escape(about)}</title></circle>"


class _Labels:
    """Names beside their circles, on lines where no other name stands; a thin line leads to those further away."""

    CHARACTER, LINE = 5.8, 12.0  # pixels

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._taken: list[tuple[float, float, float]] = []  # left, right, baseline

    def add(self, text: str, x: float, y: float, radius: float) -> None:
        width = self.CHARACTER * len(text)
        left = x + radius + 3
        if left + width > WIDTH - RIGHT:
            left = x - radius - 3 - width
        steps = sorted(range(-12, 13), key=abs)
        free = (y + 4 + self.LINE * step for step in steps if self._is_free(left, width, y + 4 + self.LINE * step))
        line = next(free, y + 4)
        self._taken.append((left, left + width, line))
        if abs(line - y - 4) > radius:
            near = left if left > x else left + width
            self.parts.append(_line(x, y, near, line - 4, "#999999"))
        self.parts.append(f'<text x="{left:.1f}" y="{line:.1f}" font-size="11">{html.escape(text)}</text>')

    def _is_free(self, left: float, width: float, line: float) -> bool:
        inside = TOP < line - 4 < HEIGHT - BOTTOM
        return inside and not any(
            left < right and start < left + width and abs(line - other) < self.LINE
            for start, right, other in self._taken
        )


def _colour(delay: float | None) -> str:
    return OFFLINE if delay is None else next(colour for most, colour in DELAYS if delay <= most)


def _legend() -> list[str]:
    rows = [(OFFLINE, "whole utterance")]
    rows += [(c, f"delay up to {m:.0f} ms" if m < math.inf else "delay longer") for m, c in DELAYS]
    parts, x = [], WIDTH - RIGHT + 12
    for number, (colour, text) in enumerate(rows):
        y = TOP + 18 * number
        parts.append(f'<circle cx="{x}" cy="{y}" r="6" fill="{colour}" fill-opacity="0.65"/>')
        parts.append(f'<text x="{x + 12}" y="{y + 4}" font-size="11">{text}</text>')
    y = TOP + 18 * len(rows)
    parts.append(f'<text x="{x - 6}" y="{y + 4}" font-size="11">area: parameters</text>')
    parts.append(f'<text x="{x - 6}" y="{y + 20}" font-size="11">black edge: unbeaten</text>')
    return parts
