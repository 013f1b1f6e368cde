"""Small graphs as pictures: SVG written directly, so that no other program is needed.

States stand in columns by their distance from the start, ordered within a column by where their arcs come
from (the barycentre heuristic of Sugiyama et al. 1981). Arcs between the same two states are one line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

MOST_STATES = 200  # more than that cannot be read
RADIUS, ROW, LINE, LETTER = 16.0, 84.0, 13.0, 6.6  # pixels: of a state, between rows, of text, of a letter
SWEEPS = 8
MOST_LABELS = 6  # on one line; the rest are counted


@dataclass(frozen=True)
class Picture:
    """What is drawn: start state, arcs by their ends with the labels they carry, texts of final states.

    more: how many states of the graph are left out.
    """

    start: int
    arcs: Mapping[tuple[int, int], Sequence[str]]
    final: Mapping[int, str]
    more: int = 0

    @property
    def states(self) -> list[int]:
        return sorted({self.start, *self.final, *(state for ends in self.arcs for state in ends)})


def picture_of(
    content: Mapping[str, Any], inputs: Mapping[int, str], outputs: Mapping[int, str], most: int = 0
) -> Picture:
    """The picture of a k2 dict (`arcs`, and `aux_labels` of a transducer), labels named where a name is known.

    most: draw the states nearest to the start only, so many; 0: all, and ValueError if they are too many.
    """
    arcs = content["arcs"].to(torch.int32).numpy()
    weight = np.ascontiguousarray(arcs[:, 3]).view(np.float32)
    ending = arcs[:, 2] == -1
    count = int(max(arcs[:, 0].max(initial=0), arcs[~ending, 1].max(initial=0))) + 1
    if count > MOST_STATES and not most:
        raise ValueError(f"the graph has {count} states, too many to read; draw the first of them with --states 50")
    near = set(_nearest(arcs[~ending], most)) if most else set(range(count))
    said = [inputs.get(int(label), str(label)) for label in arcs[:, 2]]
    if "aux_labels" in content:
        written = [outputs.get(int(label), str(label)) for label in content["aux_labels"]]
        said = [f"{_epsilon(a)}:{_epsilon(b)}" for a, b in zip(said, written)]
    lines: dict[tuple[int, int], list[str]] = {}
    for (src, dst), text, value in zip(arcs[~ending, :2], np.array(said)[~ending], weight[~ending]):
        if int(src) in near and int(dst) in near:
            lines.setdefault((int(src), int(dst)), []).append(f"{_epsilon(str(text))}{_number(value)}")
    final = {int(s): _number(w) for s, w in zip(arcs[ending, 0], weight[ending]) if int(s) in near}
    return Picture(0, lines, final, count - len(near))


def _epsilon(symbol: str) -> str:
    return "ε" if symbol in ("0", "<eps>") else symbol


def _number(weight: float) -> str:
    return f" {weight:.2f}" if abs(weight) >= 0.005 else ""


def _nearest(arcs: np.ndarray, most: int) -> list[int]:
    """States by their distance from the start."""
    following: dict[int, list[int]] = {}
    for src, dst in arcs[:, :2].tolist():
        following.setdefault(src, []).append(dst)
    found, queue = {0}, [0]
    for state in queue:
        fresh = [dst for dst in dict.fromkeys(following.get(state, [])) if dst not in found]
        queue += fresh
        found.update(fresh)
        if len(queue) >= most:
            break
    return queue[:most]


Point = tuple[float, float]


def draw(picture: Picture) -> str:
    """The picture as an SVG document."""
    columns = _columns(picture)
    places = _places(columns, picture)
    loops = {ends: labels for ends, labels in picture.arcs.items() if ends[0] == ends[1]}
    lines = {ends: labels for ends, labels in picture.arcs.items() if ends[0] != ends[1]}
    under, over, marks = [], [], list(places.values())
    for ends, labels in lines.items():
        path, text = _line(places[ends[0]], places[ends[1]], ends[::-1] in lines, _column_of(columns, ends))
        under.append(f'<path d="{path}" marker-end="url(#tip)"/>')
        over.append(_text(text, labels))
        marks.append(text)
    for (state, _), labels in loops.items():
        x, y = places[state]
        left, right, top = x - RADIUS * 0.6, x + RADIUS * 0.6, y - RADIUS * 2.6
        path = f"M {left:.1f} {y - RADIUS * 0.8:.1f} C {left - 12:.1f} {top:.1f} {right + 12:.1f} {top:.1f}"
        under.append(f'<path d="{path} {right:.1f} {y - RADIUS * 0.85:.1f}" marker-end="url(#tip)"/>')
        over.append(_text((x, top - LINE * (len(_shown(labels)) - 1) / 2), labels))
    nodes = [_node(state, places[state], picture) for state in picture.states]
    return _document(marks, [*under, *nodes, *over], picture, max(map(len, loops.values()), default=0))


def _columns(picture: Picture) -> list[list[int]]:
    """States by their distance from the start; those that it does not reach come last."""
    distance = _distances(picture)
    last = max(distance.values()) + 1
    columns: list[list[int]] = [[] for _ in range(last + (len(distance) < len(picture.states)))]
    for state in picture.states:
        columns[distance.get(state, last)].append(state)
    for _ in range(SWEEPS):
        for column in columns[1:]:
            _reorder(column, picture, {state: i for c in columns for i, state in enumerate(c)})
    return columns


def _distances(picture: Picture) -> dict[int, int]:
    """Arcs from the start: on the longest way if there are no cycles (all arcs then go on), else on the shortest."""
    following: dict[int, list[int]] = {}
    for src, dst in picture.arcs:
        following.setdefault(src, []).append(dst)
    shortest: dict[int, int] = {}
    longest: dict[int, int] = {}
    front = {picture.start}
    for steps in range(len(picture.states) + 1):
        longest.update(dict.fromkeys(front, steps))
        shortest = dict.fromkeys(front, steps) | shortest
        front = {dst for src in front for dst in following.get(src, [])}
    return shortest if front else longest


def _reorder(column: list[int], picture: Picture, rank: Mapping[int, int]) -> None:
    """Sort a column by the mean rank of the states outside it that its states have arcs with."""
    members, centre = set(column), {}
    for state in column:
        ends = [a if b == state else b for a, b in picture.arcs if state in (a, b)]
        other = [rank[end] for end in ends if end not in members]
        centre[state] = sum(other) / len(other) if other else rank[state]
    column.sort(key=lambda state: (centre[state], state))


def _places(columns: Sequence[Sequence[int]], picture: Picture) -> dict[int, Point]:
    longest = max((len(text) for labels in picture.arcs.values() for text in _shown(labels)), default=0)
    tallest = max(len(labels) for labels in [*map(_shown, picture.arcs.values()), [""]])
    across, down = 130 + LETTER * longest, max(ROW, LINE * tallest + 3 * RADIUS)
    height = max(len(column) for column in columns)
    return {
        state: (number * across, (row + (height - len(column)) / 2) * down)
        for number, column in enumerate(columns)
        for row, state in enumerate(column)
    }


def _column_of(columns: Sequence[Sequence[int]], ends: tuple[int, int]) -> int:
    """How many columns an arc goes to the right."""
    number = {state: n for n, column in enumerate(columns) for state in column}
    return number[ends[1]] - number[ends[0]]


def _line(start: Point, end: Point, both_ways: bool, columns: int) -> tuple[str, Point]:
    """A curve from state to state, and where its labels stand; straight where nothing is in its way."""
    (x, y), (u, v) = start, end
    length = math.hypot(u - x, v - y)
    bend = 0.0 if columns == 1 and not both_ways else 24 + 0.16 * length
    normal = ((v - y) / length, (x - u) / length)  # to the left of the way, as the eye sees it
    middle = ((x + u) / 2 + 2 * bend * normal[0], (y + v) / 2 + 2 * bend * normal[1])
    first, last = _towards(start, middle), _towards(end, middle)
    share = 0.5 if bend else 0.35  # straight lines that cross have their labels apart
    path = f"M {first[0]:.1f} {first[1]:.1f} Q {middle[0]:.1f} {middle[1]:.1f} {last[0]:.1f} {last[1]:.1f}"
    rest = 1 - share
    at = [rest * rest * a + 2 * rest * share * m + share * share * b for a, m, b in zip(first, middle, last)]
    return path, (at[0], at[1])


def _towards(start: Point, goal: Point) -> Point:
    """The point on a state's rim in the direction of a goal."""
    x, y = goal[0] - start[0], goal[1] - start[1]
    length = math.hypot(x, y) or 1.0
    return start[0] + x / length * (RADIUS + 1), start[1] + y / length * (RADIUS + 1)


def _shown(labels: Sequence[str]) -> list[str]:
    left = len(labels) - MOST_LABELS
    return [*labels] if left <= 1 else [*labels[:MOST_LABELS], f"… {left} more"]


def _text(place: Point, labels: Sequence[str]) -> str:
    shown = _shown(labels)
    top = place[1] - LINE * (len(shown) - 1) / 2
    rows = "".join(
        f'<tspan x="{place[0]:.1f}" y="{top + LINE * n:.1f}">{escape(t)}</tspan>' for n, t in enumerate(shown)
    )
    return f'<text class="label">{rows}</text>'


def _node(state: int, place: Point, picture: Picture) -> str:
    x, y = place
    kind = ' class="start"' if state == picture.start else ""
    circles = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}"{kind}/>'
    ending = picture.final.get(state)
    if ending is not None:
        circles += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS - 3}"/>'
    if ending:
        circles += _text((x, y + RADIUS + LINE * 0.8), [ending.strip()])
    return f'{circles}<text x="{x:.1f}" y="{y:.1f}">{state}</text>'


STYLE = """
  path { fill: none; stroke: #456; stroke-width: 1.2 } #tip path { fill: #456; stroke: none }
  circle { fill: #fff; stroke: #123; stroke-width: 1.2 } circle.start { stroke-width: 3 }
  text { font: 12px sans-serif; text-anchor: middle; dominant-baseline: central; fill: #123 }
  text.label { font-size: 11px; paint-order: stroke; stroke: #fff; stroke-width: 4px }
"""


def _document(marks: Sequence[Point], parts: Sequence[str], picture: Picture, loops: int) -> str:
    xs, ys = zip(*marks)
    side = 4 * RADIUS
    left, top = min(xs) - side, min(ys) - side - LINE * min(loops, MOST_LABELS)
    width, height = max(xs) - left + side, max(ys) - top + side
    note = f'<text x="{left + 90:.0f}" y="{top + 12:.0f}">{picture.more} states left out</text>' if picture.more else ""
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left:.0f} {top:.0f} {width:.0f} {height:.0f}"'
        f' width="{width:.0f}" height="{height:.0f}">\n<style>{STYLE}</style>\n'
        f'<defs>{tip}<path d="M 0 0 L 8 4 L 0 8 z"/></marker></defs>\n'
        f'<rect x="{left:.0f}" y="{top:.0f}" width="100%" height="100%" fill="#fff"/>\n'
        + "\n".join([*parts, note])
        + "\n</svg>\n"
    )


def read_content(path: Path) -> dict[str, Any]:
    """A graph file as a k2 dict: k2's own (*.pt), or OpenFst's binary form. FileNotFoundError, ValueError."""
    from distill.fsa.formats import transducer_to_k2_dict

    if not path.is_file():
        raise FileNotFoundError(f"no graph at {path}")
    if path.suffix == ".fst":
        import kaldifst

        return transducer_to_k2_dict(kaldifst.StdVectorFst.read(str(path)))
    try:
        content = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds for cut or foreign files
        raise ValueError(f"{path}: not readable as a graph ({error})") from None
    if not isinstance(content, dict) or "arcs" not in content:
        raise ValueError(f"{path}: expected a dict with 'arcs', as k2's Fsa.as_dict gives")
    return content
