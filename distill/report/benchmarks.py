"""The page of benchmarks/results/*.json: one section per benchmark, a table for each of its cases.

The files have plain figures in seconds and bytes; tables show them in units that fit.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.report.table import Table

Row = Mapping[str, Any]
CASE, ENGINE = "case", "engine"
UNITS = {"mb": "MB", "ms": "ms", "gb": "GB", "percent": "%", "bytes": "B"}  # by the last part of a name
TIMES = ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (0.0, 1e6, "µs"))  # median from which: factor and unit
NAMES = {
    "rtf": "RTF", "wer": "WER/%", "macs_per_second": "MAC per s of audio", "per_audio_second": "time per s of audio",
    "gemm_gflops": "GFLOP/s of a product of matrices", "int8_gops": "GOP/s of a product of 8-bit matrices",
}  # fmt: skip
LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"))
UNMEASURED = {
    "gpu_check": (
        "update of T1 -> S5, MFU: at least 35 %", "update of T1 -> S5, share of LF-MMI: at most 10 %",
        "LF-MMI over the trigram, 32 utterances of 500 frames: at most 3 ms",
    )
}  # fmt: skip
"""Benchmarks that need hardware of their own, and their goals: listed as not yet run where there is no file."""
NOT_RUN = "not yet run"
BESIDE = 3  # rows of a case from which on it has a table of its own


def read_benchmark(path: Path) -> Mapping[str, Any]:
    """The file that a benchmark wrote; raises ValueError for a file without a list of rows."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["rows"], list):
            raise TypeError("rows is not a list")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a benchmark with rows ({error!r}); measure it again with --json") from None
    return content


def read_all(root: Path) -> dict[str, Mapping[str, Any]]:
    """Name -> content of a repository's benchmarks, sorted; of UNMEASURED without a file, the goals."""
    none = {
        name: {"goals": [{"goal": g, "got": None} for g in goals], "rows": []} for name, goals in UNMEASURED.items()
    }
    found = {path.stem: read_benchmark(path) for path in root.glob("benchmarks/results/*.json")}
    return dict(sorted({**none, **found}.items()))


def page(root: Path) -> str:
    """benchmarks/results/README.md."""
    parts = ["# Benchmarks", "", "Written by `tools/report.py` from the JSON files beside it.", ""]
    for name, content in read_all(root).items():
        parts += [f"## {name}", "", *benchmark_lines(content), ""]
    return "\n".join(parts)


def benchmark_lines(content: Mapping[str, Any]) -> list[str]:
    """Facts of the whole benchmark, one line per goal, then the rows as markdown tables."""
    plain = {key: value for key, value in content.items() if _plain(value)}
    facts = [f"- {NAMES.get(key, _words(key))}: {_cell(value, _figure)}" for key, value in plain.items()]
    for goal, *outcome in map(_goal, content.get("goals", ())):
        facts.append(f"- goal: {goal}" + (f": {', '.join(filter(None, outcome))}" if any(outcome) else ""))
    return [*facts, "", *_tables(content["rows"])]


def goal_table(root: Path) -> Table:
    """One row per benchmark with goals: how many were reached, and the others with what was measured."""
    rows = []
    for name, content in read_all(root).items():
        goals = [_goal(goal) for goal in content.get("goals", ())]
        missed = "; ".join(f"{goal} ({measured})" for goal, measured, verdict in goals if verdict == "missed")
        if goals:
            rows.append(
                (
                    name,
                    str(len(goals)),
                    str(sum(g[2] == "reached" for g in goals)),
                    missed or ("-" if content["rows"] else NOT_RUN),
                )
            )
    return Table(("benchmark", "goals", "reached", "missed (measured)"), tuple(rows))


def highlights(root: Path) -> Iterator[str]:
    """Lines of README.md, for the benchmarks that are there."""
    content, link = read_all(root), "[benchmarks](benchmarks/results/README.md)"
    if "lfmmi" in content:
        goals = [_goal(goal) for goal in content["lfmmi"].get("goals", ())]
        shown = ", ".join(f"{goal} ({measured})" for goal, measured, _ in goals)
        yield f"**LF-MMI kernel** on a CPU, goals with measurements in brackets: {shown} ({link})"
    if "server" in content:
        best = min(content["server"]["rows"], key=lambda row: row["p95_seconds"])
        yield (
            f"**Server**: {best['case']} on {best['cores']} cores: 95 % of the partial results within"
            f" {1000 * best['p95_seconds']:.0f} ms, {best['lost']} streams lost ({link})"
        )


def _goal(goal: Any) -> tuple[str, str, str]:
    """A goal's text, its measurement and its verdict; a goal that is text has neither."""
    if not isinstance(goal, Mapping):
        return str(goal), "", ""
    verdict = "" if goal.get("met") is None else "reached" if goal["met"] else "missed"
    return str(goal["goal"]), _cell(goal["got"], _figure) if goal.get("got") is not None else NOT_RUN, verdict


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    """One table per case where cases have several rows, else one of all."""
    if not rows:
        return
    cases = list(dict.fromkeys(str(row.get(CASE, "")) for row in rows))
    if cases == [""] or len(rows) < BESIDE * len(cases):
        yield from benchmark_table(rows).markdown()
        return
    for place, case in enumerate(cases):
        yield from ([""] if place else [])
        yield from (f"**{case}**", "")
        some = [{key: value for key, value in row.items() if key != CASE} for row in rows if str(row[CASE]) == case]
        yield from benchmark_table(some, rows).markdown()


def benchmark_table(rows: Sequence[Row], everything: Sequence[Row] = ()) -> Table:
    """A column for every plain figure that any row has, case and engine first; "-" where a row lacks it.

    everything: the rows of all tables, which all have the same units.
    """
    everything = everything or rows
    present = dict.fromkeys(key for row in rows for key, value in row.items() if _plain(value) and value != "")
    first = [key for key in (CASE, ENGINE) if key in present]
    columns = []
    for key in (*first, *(key for key in present if key not in first)):
        heading, shown = _column(key, everything)
        cells = [_cell(row.get(key), shown) for row in rows]
        if key.endswith("_high") and f"{key.removesuffix('_high')}_low" in present:
            continue
        if key.endswith("_low") and _partner(key) in present:
            highs = [_cell(row.get(_partner(key)), shown) for row in rows]
            cells = [low if low == high else f"{low} to {high}" for low, high in zip(cells, highs)]
            heading = heading.replace(" low", ", range")
        columns.append((heading, cells))
    return Table(tuple(head for head, _ in columns), tuple(zip(*(cells for _, cells in columns))), fixed=len(first))


def _partner(key: str) -> str:
    return f"{key.removesuffix('_low')}_high"


def _column(key: str, rows: Sequence[Row]) -> tuple[str, Callable[[float], str]]:
    """A heading with its unit, and how a figure is shown in it."""
    *name, last = key.split("_")
    if last == "seconds" or key == "per_audio_second":
        return _time_column(key, [row.get(key) for row in rows])
    if key == "ratio":
        return _ratio_heading(rows), _times_as_much
    if "ratio" in key.split("_"):
        return _words(key), _times_as_much
    if "share" in key.split("_"):
        return f"{_words(key)}/%", lambda share: _figure(100 * share)
    if last in UNITS and name:
        return f"{' '.join(name)}/{UNITS[last]}", _figure
    return NAMES.get(key, _words(key)), _figure


def _time_column(key: str, values: Sequence[Any]) -> tuple[str, Callable[[float], str]]:
    known = [abs(value) for value in values if _is_number(value)]
    middle = statistics.median(known) if known else 1.0
    factor, unit = next((factor, unit) for least, factor, unit in TIMES if middle >= least)
    name = NAMES.get(key) or f"{_words(key.removesuffix('seconds'))} time".strip()
    return f"{name}/{unit}", lambda seconds: _figure(factor * seconds)


def _ratio_heading(rows: Sequence[Row]) -> str:
    """Heading of the ratio column: names the baseline, and whether larger is slower or faster."""
    known = [row for row in rows if _is_number(row.get("ratio")) and _is_number(row.get("seconds"))]
    bases = [row for row in known if row["ratio"] == 1]
    names = {str(row.get(ENGINE)) for row in bases}
    where = {str(row.get(CASE)) for row in known}
    base = names.pop() if len(names) == 1 and len(bases) >= len(where) else str(bases[0].get(CASE)) if bases else ""
    others = [(row["ratio"] - 1) * (row["seconds"] - _base_of(row, bases)["seconds"]) for row in known if bases]
    if not base or all(sign == 0 for sign in others):
        return "ratio"
    if all(sign >= 0 for sign in others):
        return f"time, {base} = 1"
    return f"speed, {base} = 1" if all(sign <= 0 for sign in others) else "ratio"


def _base_of(row: Row, bases: Sequence[Row]) -> Row:
    """Baseline row for `row`: of the same case and thread count if there is one."""
    alike = ("case", "threads")
    return max(bases, key=lambda base: [base.get(key) == row.get(key) for key in alike])


# Cells


def _plain(value: Any) -> bool:
    return value is not None and not isinstance(value, (list, dict))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _words(key: str) -> str:
    return key.replace("_", " ").strip()


def _cell(value: Any, shown: Callable[[float], str]) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if _is_number(value):
        return "-" if math.isnan(value) else shown(value)
    return str(value) if _plain(value) and value != "" else "-"


def _figure(value: float) -> str:
    """Three significant digits, whole numbers as they are: 0.00168, 24.9, 1,242, 2.41 G."""
    if isinstance(value, int) and abs(value) < 1e9:
        return f"{value:,}"
    for size, prefix in LARGE:
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{float(f'{value:.3g}'):g}"


def _times_as_much(value: float) -> str:
    """1,539x, 12.6x, 0.22x."""
    return f"{value:,.0f}x" if value >= 100 else f"{value:.1f}x" if value >= 10 else f"{value:.2f}x"
