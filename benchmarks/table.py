"""The end of every benchmark: its rows as a table, and as a JSON file with their provenance."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distill.files import write_text
from distill.recipe.provenance import commit, hardware
from distill.report.benchmarks import benchmark_table

Row = dict[str, Any]


def finish(rows: Sequence[Row], path: Path | None, command: str = "", **facts: Any) -> None:
    """Print the rows as a table; with `path`, write them there with hardware, commit and command.

    command: by default as it was given; facts: further keys of the file. Keys keep their order, that of the columns.
    """
    print("\n".join(benchmark_table(rows).terminal(160)))
    if path:
        about = {"hardware": hardware(torch.device("cpu")), "commit": commit()}
        about["command"] = command or shlex.join(
            ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
        )
        write_text(path, json.dumps({**about, **facts, "rows": rows}, indent=1) + "\n")


def progress(row: Mapping[str, Any]) -> None:
    """Print a row when it is measured."""
    cells = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
             if value is not None and not isinstance(value, list))  # fmt: skip
    print(", ".join(cells), flush=True)
