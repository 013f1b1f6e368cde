"""Calibration of word confidences: confidence.json, a table of all decodings, a reliability plot of the hardest set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from distill.report.plots import reliability
from distill.report.results import CalibrationBin, CalibrationResult
from distill.report.runs import GRAPH, Run, hardest_set
from distill.report.table import Section, Table, number
from distill.scoring.calibration import Calibration

FILE, PLOT = "confidence.json", "reliability"
TITLE = "Confidence of words"
NOTE = (
    "NCE: normalised cross entropy, 1 at best, 0 for a constant (Siu and Gish 1999). Calibration error: mean distance"
    " between confidence and share of correct words over ten bins. Confidences are lattice posteriors, not fitted."
)


def write_calibration(folder: Path, figures: Calibration) -> None:
    """Write confidence.json into a decode folder."""
    bins = tuple(CalibrationBin(**each._asdict()) for each in figures.bins)
    result = CalibrationResult(
        words=figures.words, right=figures.right, nce=figures.nce, error=figures.error, bins=bins
    )
    result.write(folder / FILE)


def _paths(runs: Sequence[Run]) -> Iterator[tuple[str, str, str]]:
    """Experiment, test set and file name in the exp-dir, of every decoding with words in a main mode."""
    for run in runs:
        for name in sorted({d.test_set for d in run.decodings if (d.mode, d.method) == (run.main_mode, GRAPH)}):
            yield run.name, name, f"{run.name}/decode_{name}_{run.main_mode}_{GRAPH}/{FILE}"


def files(runs: Sequence[Run]) -> list[str]:
    """Names, in an exp-dir, of the files that this report reads."""
    return [path for _, _, path in _paths(runs)]


def sections(folder: Path, runs: Sequence[Run]) -> list[Section]:
    """A section of a report; writes the plot into the folder. Raises ValueError for a damaged file."""
    results = {
        (name, test_set): CalibrationResult.read(folder / path)
        for name, test_set, path in _paths(runs)
        if (folder / path).is_file()
    }
    if not results:
        return []
    rows = tuple(
        (name, test_set, f"{r.words:,}", f"{100 * r.right:.2f}", number(r.nce, 3), f"{r.error:.3f}")
        for (name, test_set), r in results.items()
    )
    table = Table(("model", "set", "words", "correct/%", "NCE", "calibration error"), rows, 2)
    body, hardest = [*table.markdown(), "", NOTE], hardest_set(runs)
    plotted = {name: result for (name, test_set), result in results.items() if test_set == hardest}
    if plotted:
        reliability(plotted, folder / PLOT)
        body += ["", f"![Reliability of confidences, {hardest}]({PLOT}.svg)"]
    return [(TITLE, body)]
