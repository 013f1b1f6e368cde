"""Whether the confidences of words mean what they say: a table of all decodings, and a plot on the hardest set.

As in report.py every figure comes from a file: confidence.json, which stage 10 writes. Only the standard library is
imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.report.recognition import GRAPH, Run, Section, Table, write_text
from distill.report.reliability_plot import reliability_svg
from distill.report.speed import hardest_set

PLOT = "reliability.svg"
TITLE = "Confidence of words"
NOTE = (
    "NCE: normalised cross entropy, 1 at best, 0 for a constant (Siu and Gish 1999). Calibration error: mean distance"
    " between confidence and share right over ten bins. Confidences are lattice posteriors as they are, not fitted."
)


def _file(run: Run, test_set: str) -> str:
    return f"{run.name}/decode_{test_set}_{run.main_mode}_{GRAPH}/confidence.json"


def files(runs: Sequence[Run]) -> list[str]:
    """Names, in an exp-dir, of what this report reads."""
    return [_file(run, test_set) for run in runs for test_set in _sets(run)]


def _sets(run: Run) -> list[str]:
    return sorted({str(d["set"]) for d in run.decodings if (d["mode"], d["method"]) == (run.main_mode, GRAPH)})


def read(folder: Path, runs: Sequence[Run]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The figures of an exp-dir by (experiment, set); raises ValueError for a file that is not JSON."""
    return dict(_read(folder, runs))


def _read(folder: Path, runs: Sequence[Run]) -> Iterator[tuple[tuple[str, str], Mapping[str, Any]]]:
    for run in runs:
        for test_set in _sets(run):
            path = folder / _file(run, test_set)
            if path.is_file():
                try:
                    yield (run.name, test_set), json.loads(path.read_text(encoding="utf-8"))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path} is not JSON ({error}); remove its folder and run stage 10") from None


def table(found: Mapping[tuple[str, str], Mapping[str, Any]]) -> Table:
    """Words, the share that is right, and both measures of each decoding."""
    rows = []
    for (name, test_set), each in found.items():
        nce = "-" if each["nce"] is None else f"{each['nce']:.3f}"
        rows.append((name, test_set, f"{each['words']:,}", f"{100 * each['right']:.2f}", nce, f"{each['error']:.3f}"))
    return Table(("model", "set", "words", "right/%", "NCE", "calibration error"), tuple(rows), 2)


def sections(folder: Path, runs: Sequence[Run], plot_name: str = PLOT) -> list[Section]:
    """A section of a report; writes the plot into the folder, which the report knows as `plot_name`."""
    found = read(folder, runs)
    if not found:
        return []
    hardest = hardest_set(runs)
    plotted = {name: each for (name, test_set), each in found.items() if test_set == hardest}
    body = [*table(found).markdown(), "", NOTE]
    if plotted:
        write_text(folder / PLOT, "\n".join(reliability_svg(plotted)) + "\n")
        body += ["", f"![How often words of a confidence are right, {hardest}]({plot_name})"]
    return [(TITLE, body)]
