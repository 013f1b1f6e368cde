"""The reliability plot: how often words of a confidence are right. Only the standard library is imported."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill.scoring.calibration import Calibration
from distill.scoring.wer import write_lines

SIZE, EDGE = 300, 40
COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#762a83", "#b35806", "#444444")


def reliability_svg(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Share right over confidence, a line per system, a dot per bin, its area by the words in it.

    systems: name -> the content of confidence.json (`confidence.Calibration`). On the diagonal all is as said.
    """
    tall = SIZE + 2 * EDGE + 18 * len(systems)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE + 2 * EDGE} {tall}" role="img"'
        ' font-family="sans-serif" font-size="12">',
        "<title>How often words of a confidence are right</title>",
        f'<rect width="{SIZE + 2 * EDGE}" height="{tall}" fill="white"/>',
        f'<rect x="{EDGE}" y="{EDGE}" width="{SIZE}" height="{SIZE}" fill="none" stroke="#888"/>',
        f'<path d="M{EDGE} {EDGE + SIZE}L{EDGE + SIZE} {EDGE}" stroke="#bbb" stroke-dasharray="4"/>',
    ]
    for value in (0, 0.5, 1):
        x, y = _place(value, value)
        lines.append(f'<text x="{x:g}" y="{EDGE + SIZE + 16}" text-anchor="middle">{value:g}</text>')
        lines.append(f'<text x="{EDGE - 6}" y="{y + 4:g}" text-anchor="end">{value:g}</text>')
    middle = EDGE + SIZE / 2
    lines.append(f'<text x="{middle:g}" y="{2 * EDGE + SIZE - 8}" text-anchor="middle">confidence</text>')
    lines.append(f'<text x="{EDGE}" y="{EDGE - 10}">share of words that are right</text>')
    for index, (name, figures) in enumerate(systems.items()):
        lines += _system(name, figures, COLOURS[index % len(COLOURS)], 2 * EDGE + SIZE + 10 + 18 * index)
    return [*lines, "</svg>"]


def _place(confidence: float, right: float) -> tuple[float, float]:
    return EDGE + SIZE * confidence, EDGE + SIZE * (1 - right)


def _system(name: str, figures: Mapping[str, Any], colour: str, legend: float) -> Iterator[str]:
    filled = [each for each in figures["bins"] if each["words"]]
    points = [_place(each["confidence"], each["right"]) for each in filled]
    if points:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-opacity=".6"/>'
    for each, (x, y) in zip(filled, points):
        radius = 2 + 10 * math.sqrt(each["words"] / figures["words"])
        yield (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}" fill-opacity=".5"><title>'
            f"{html.escape(name)}, {each['words']} words: confidence {each['confidence']:.3f},"
            f" right {each['right']:.3f}</title></circle>"
        )
    nce = "-" if figures["nce"] is None else f"{figures['nce']:.3f}"
    yield f'<circle cx="{EDGE}" cy="{legend - 4:g}" r="5" fill="{colour}"/>'
    yield (
        f'<text x="{EDGE + 10}" y="{legend:g}">{html.escape(name)}: NCE {nce}, calibration error'
        f" {figures['error']:.3f}</text>"
    )


def write_calibration(folder: Path, figures: Calibration) -> None:
    """confidence.json and reliability.svg."""
    content = {**asdict(figures), "bins": [each._asdict() for each in figures.bins]}
    write_lines(folder / "confidence.json", [json.dumps(content, indent=1, sort_keys=True)])
    picture = reliability_svg({f"{figures.words} words": content})
    write_lines(folder / "reliability.svg", picture)
