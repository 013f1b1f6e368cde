"""Loss curves of trainings, from the curves.tsv of each, and error rates over the epochs that were decoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from distill.report import plots
from distill.report.results import WerResult
from distill.report.runs import decoding_files

CURVES = "curves.tsv"  # written by distill/train/monitor.py: update, name, value
MOST_POINTS = 300  # of a line; further ones are averaged
Line = Mapping[float, float]


def draw(folders: Sequence[Path], out: Path) -> list[Path]:
    """Plots of some experiments' folders, or of all experiments below them, as SVG and PNG; returns their paths.

    One of the loss and of each term, training dashed and validation solid, and one of error rates where a set was
    decoded with several epochs. Raises FileNotFoundError where there are no curves, ValueError for a damaged file
    and before the first validation.
    """
    files = [path for folder in folders for pattern in (CURVES, f"*/{CURVES}") for path in sorted(folder.glob(pattern))]
    if not files:
        raise FileNotFoundError(f"no {CURVES} in or below {', '.join(map(str, folders))}; trainings write it there")
    names = [path.parent.name for path in files]
    labels = names if len(set(names)) == len(names) else [str(path.parent) for path in files]
    series = {label: read(path) for label, path in zip(labels, files)}
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for term in sorted({name.partition("/")[2] for each in series.values() for name in each if name[:6] == "valid/"}):
        lines = {
            f"{label}, {kind}": thinned(each[f"{kind}/{term}"])
            for label, each in series.items()
            for kind in ("train", "valid")
            if f"{kind}/{term}" in each
        }
        written.append(out / term)
        plots.curves(lines, "update", term, written[-1])
    if not written:
        raise ValueError(f"{', '.join(map(str, files))}: no values of a validation; the first epoch's end writes them")
    rates = wer_over_epochs(path for file in files for path in decoding_files(file.parent))
    if rates:
        written.append(out / "wer")
        plots.curves(rates, "epoch", "word error rate (%)", written[-1])
    return [path.with_name(f"{path.name}.{kind}") for path in written for kind in ("svg", "png")]


def read(path: Path) -> dict[str, dict[float, float]]:
    """Values by update by name; of a value that was written twice the later. Raises ValueError naming file and line.

    A last line without its end, which a training is writing or was killed at, is left out.
    """
    series: dict[str, dict[float, float]] = {}
    for number, row in enumerate(path.read_text(encoding="utf-8").split("\n")[1:-1], 2):
        try:
            update, name, value = row.split("\t")
            series.setdefault(name, {})[int(update)] = float(value)
        except ValueError:
            raise ValueError(f"{path}:{number}: expected update, name and value between tabs, got {row!r}") from None
    return {name: dict(sorted(values.items())) for name, values in series.items()}


def thinned(line: Line) -> Line:
    """At most MOST_POINTS points: means of as many neighbours each."""
    points, size = list(line.items()), -(-len(line) // MOST_POINTS)
    groups = (points[begin : begin + size] for begin in range(0, len(points), size))
    return {fmean(x for x, _ in group): fmean(y for _, y in group) for group in groups}


def wer_over_epochs(paths: Iterable[Path]) -> dict[str, Line]:
    """Error rate by epoch of what was decoded with several epochs, by experiment, set, condition, mode and method."""
    rates: dict[str, dict[float, float]] = {}
    for result in map(WerResult.read, paths):
        of = (result.test_set, result.condition, result.mode, result.method)
        name = f"{result.experiment}, {' '.join(filter(None, of))}"
        rates.setdefault(name, {})[result.epoch] = result.wer
    return {name: dict(sorted(some.items())) for name, some in sorted(rates.items()) if len(some) > 1}
