"""The beginning and the end of every benchmark: its options, and its rows as a table and as a JSON file."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from distill.files import write_text
from distill.recipe.provenance import commit, hardware
from distill.report.benchmarks import benchmark_table

Row = dict[str, Any]
Goals = Callable[[Sequence[Row]], Iterable[dict[str, Any]]]


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option that all benchmarks have: --json FILE."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
    return made


def above_zero(kind: type[int] | type[float]) -> Callable[[str], float]:
    """For argparse: a number of this type, above 0."""

    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"a number above 0 is needed (got {text})")
        return value

    number.__name__ = kind.__name__  # in argparse's message on what is no number
    return number


def finish(
    rows: Iterable[Row],
    path: Path | None,
    command: str = "",
    goals: Goals | None = None,
    each: bool = False,
    **facts: Any,
) -> None:
    """Print each row when it is measured, then the table; with `path`, write it with hardware, commit and command.

    command: by default as it was given. goals: of the rows, dicts of goal, got and met. each: write the file after
    every row, for a benchmark that may be ended early. facts: further keys of the file. Keys keep their order, that of
    the columns.
    """
    measured: list[Row] = []
    command = command or shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    about = {"hardware": hardware(torch.device("cpu")), "commit": commit(), "command": command, **facts}

    def write() -> None:
        reached = {"goals": list(goals(measured))} if goals else {}
        if path:
            write_text(path, json.dumps({**about, **reached, "rows": measured}, indent=1) + "\n")

    for row in rows:
        cells = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
                 if value is not None and not isinstance(value, list))  # fmt: skip
        print(", ".join(cells), flush=True)
        measured.append(row)
        if each:
            write()
    print("\n".join(benchmark_table(measured).terminal(160)))
    write()
