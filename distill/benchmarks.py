"""Tables of benchmarks/*.json, which tools/bench_*.py write: one section of RESULTS.md each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.report import Table

FIRST = ("case", "engine")


def read_benchmark(path: Path) -> Mapping[str, Any]:
    """What a tools/bench_*.py wrote; raises ValueError for a file without a list of rows."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["rows"], list):
            raise TypeError("rows is not a list")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a benchmark with rows ({error!r}); measure it again with --json") from None
    return content


def benchmark_lines(content: Mapping[str, Any]) -> list[str]:
    """Hardware, commit and command as far as they are known, then all rows as a markdown table."""
    facts = [f"- {key}: {content[key]}" for key in ("hardware", "commit", "command") if content.get(key)]
    return [*facts, "", *benchmark_table(content["rows"]).markdown()]


def benchmark_table(rows: list[Mapping[str, Any]]) -> Table:
    """A column for every plain value that a row has, case and engine first; "-" where a row lacks it."""
    present = dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, (list, dict)))
    columns = [*(key for key in FIRST if key in present), *(key for key in present if key not in FIRST)]
    cells = tuple(tuple(_cell(row.get(column)) for column in columns) for row in rows)
    return Table(tuple(column.replace("_", " ") for column in columns), cells, fixed=2)


def _cell(value: Any) -> str:
    if value is None or isinstance(value, (list, dict)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
