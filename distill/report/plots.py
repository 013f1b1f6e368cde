"""Plots of reports as SVG and PNG; the same figures give the same bytes. Imports matplotlib when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distill.extras import needed
from distill.files import replacing
from distill.report.results import CalibrationResult
from distill.report.table import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = {"torch": "o", "onnx": "s", "int8": "^"}
STYLE: Any = {"svg.hashsalt": "distill", "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}


class Point(NamedTuple):
    """One model in one runtime: error rate (%), parameters, RTF on one thread, look-ahead.

    delay: mean look-ahead in ms, None offline.
    """

    name: str
    mode: str
    runtime: str
    wer: float
    params: int
    rtf: float
    delay: float | None

    def costs(self) -> tuple[float, ...]:
        """The figures to minimise."""
        return self.wer, float(self.params), self.rtf, math.inf if self.delay is None else self.delay


def pareto_optimal(points: Sequence[Point]) -> set[Point]:
    """The points that no other one equals or betters in every figure."""

    def dominated(point: Point) -> bool:
        costs = (other.costs() for other in points)
        return any(c != point.costs() and all(a <= b for a, b in zip(c, point.costs())) for c in costs)

    return {point for point in points if not dominated(point)}


def figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """An empty figure (inches) with one pair of axes, or with an array of pairs side by side.

    Raises ValueError, naming the extra, without matplotlib.
    """
    with needed("a plot"):
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    with rc_context(STYLE):
        new = Figure((width, height), layout="constrained")
        return new, new.subplots(1, columns)


def save(drawing: Figure, path: Path) -> None:
    """Write `path`.svg and `path`.png."""
    from matplotlib import rc_context

    for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        with replacing(path.with_name(f"{path.name}.{kind}")) as temporary, rc_context(STYLE):
            drawing.savefig(temporary, format=kind, dpi=150, metadata=metadata)


def pareto(points: Sequence[Point], title: str, path: Path) -> None:
    """Error rate over RTF (left and down is better), one line per model and mode through its runtimes.

    Areas are parameters; a black edge marks what is Pareto-optimal in error rate, size, speed and look-ahead.
    """
    drawing, axes = figure(8, 4.6)
    best, largest = pareto_optimal(points), max(point.params for point in points)
    for name, mode in dict.fromkeys((point.name, point.mode) for point in points):
        some = [point for point in points if (point.name, point.mode) == (name, mode)]
        delay = "whole utterance" if some[0].delay is None else f"look-ahead {some[0].delay:.0f} ms"
        label = f"{name}, {delay}, {some[0].params / 1e6:.2f} M"
        (line,) = axes.plot([p.rtf for p in some], [p.wer for p in some], alpha=0.5, label=label)
        for p in some:
            edge, area = "black" if p in best else "none", 30 + 220 * p.params / largest
            look = {"color": line.get_color(), "marker": MARKERS[p.runtime], "edgecolors": edge, "alpha": 0.8}
            axes.scatter(p.rtf, p.wer, area, zorder=2, **look)
    for runtime in dict.fromkeys(point.runtime for point in points):
        axes.scatter([], [], 30, color="grey", marker=MARKERS[runtime], label=runtime)
    axes.scatter([], [], 30, color="white", edgecolors="black", label="Pareto-optimal")
    axes.set(xscale="log", xlabel="real-time factor, one thread", ylabel="word error rate (%)", title=title)
    drawing.legend(loc="outside right upper", frameon=False)
    save(drawing, path)


def reliability(systems: Mapping[str, CalibrationResult], path: Path) -> None:
    """Share of correct words over confidence, a line per system, a dot per bin with its area by words.

    Perfect calibration lies on the diagonal.
    """
    drawing, axes = figure(4.6, 5)
    axes.plot((0, 1), (0, 1), "--", color="grey")
    for name, result in systems.items():
        bins = [each for each in result.bins if each.words]
        label = f"{name}: NCE {number(result.nce, 3)}, calibration error {result.error:.3f}"
        (line,) = axes.plot([b.confidence for b in bins], [b.right for b in bins], alpha=0.6, label=label)
        sizes = [10 + 200 * b.words / result.words for b in bins]
        axes.scatter([b.confidence for b in bins], [b.right for b in bins], sizes, color=line.get_color(), alpha=0.5)
    axes.set(xlabel="confidence", ylabel="share of correct words", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect=1)
    drawing.legend(loc="outside lower center", frameon=False)
    save(drawing, path)


def curves(lines: Mapping[str, Mapping[float, float]], across: str, up: str, path: Path) -> None:
    """One line of y by x per name; those whose name ends in "train" are dashed. across, up: labels of the axes."""
    drawing, axes = figure(8, 4.6)
    for name, line in lines.items():
        style = "--" if name.endswith("train") else "-"
        axes.plot(list(line), list(line.values()), style, label=name, marker="." if len(line) < 50 else "", linewidth=1)
    axes.set(xlabel=across, ylabel=up)
    drawing.legend(loc="outside right upper", frameon=False)
    save(drawing, path)


def by_size(lines: Mapping[str, Sequence[tuple[float, float, float | None]]], up: str, path: Path) -> None:
    """One line per name of (parameters in millions, value, half of its interval or None), on a logarithmic axis."""
    drawing, axes = figure(8, 4.6)
    for name, line in lines.items():
        sizes, values, halves = zip(*sorted(line))
        axes.errorbar(sizes, values, [half or 0.0 for half in halves], label=name, marker="o", markersize=4, capsize=3)
    axes.set(xscale="log", xlabel="parameters (M)", ylabel=up)
    drawing.legend(loc="outside right upper", frameon=False)
    save(drawing, path)


def heat_maps(maps: Mapping[str, Any], across: str, up: str, path: Path) -> None:
    """Matrices of values between 0 and 1 side by side, each below its name; rows go up, columns across."""
    drawing, every = figure(4.6 * len(maps), 4.2, len(maps))
    for axes, (name, values) in zip(every, maps.items()):
        image = axes.imshow(values, origin="lower", vmin=0, vmax=1, aspect="auto")
        axes.grid(False)
        axes.set(title=name, xlabel=across, ylabel=up, xticks=range(len(values[0])), yticks=range(len(values)))
    drawing.colorbar(image, ax=every)
    save(drawing, path)


def clouds(panels: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Points (N, 2) in one pair of axes per panel below its name, in one colour per name of points."""
    drawing, every = figure(3.6 * len(panels), 4.2, len(panels))
    for axes, (title, points) in zip(every if len(panels) > 1 else [every], panels.items()):
        for name, xy in points.items():
            axes.scatter(xy[:, 0], xy[:, 1], 8, alpha=0.6, label=name)
        axes.set(title=title, xticks=[], yticks=[])
    drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower center", frameon=False, ncols=4)
    save(drawing, path)


def pipeline(boxes: Sequence[tuple[str, str]], arrows: Sequence[str], path: Path) -> None:
    """Boxes (title, text) in a row, and the text on each arrow between two of them."""
    width, gap = 2.5, 1.0
    drawing, axes = figure(len(boxes) * (width + gap) - gap + 0.2, 1.6)
    axes.set(xlim=(-0.1, len(boxes) * (width + gap) - gap + 0.1), ylim=(0, 1.6))
    axes.axis("off")
    for place, (title, text) in enumerate(boxes):
        left, colour = place * (width + gap), ("#dbe9f6", "#e2f0d9", "#fdebd0")[place % 3]
        axes.fill(
            [left, left + width, left + width, left], [0.05, 0.05, 1.55, 1.55], facecolor=colour, edgecolor="grey"
        )
        axes.text(left + width / 2, 1.34, title, ha="center", va="center", fontsize=11, fontweight="bold")
        axes.text(left + width / 2, 0.62, text, ha="center", va="center", fontsize=10, linespacing=1.4)
    for place, text in enumerate(arrows[: len(boxes) - 1]):
        start = place * (width + gap) + width
        axes.annotate("", (start + gap, 0.5), (start, 0.5), arrowprops={"arrowstyle": "-|>", "linewidth": 1.5})
        axes.text(start + gap / 2, 0.62, text, ha="center", va="bottom", fontsize=9)
    save(drawing, path)
