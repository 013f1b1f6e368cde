"""Scores over the tasks of SUPERB, and a table of experiments beside published models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from distill.config.names import hint
from distill.report.results import SuperbResult
from distill.report.runs import Run, superb_files
from distill.report.table import Section, Table


class Metric(NamedTuple):
    """A figure of a task in % (MTWV times 100): s3prl's name, ours, whether it counts errors, two reference points.

    fbank and sota: log-mel features and the best upstream of the benchmark's paper, as its leaderboard has them
    (Feng et al. 2023); FBANK's KS, IC, SID, ER and SD there differ from those in the first paper.
    """

    task: str
    figure: str
    title: str
    error: bool
    fbank: float
    sota: float

    @property
    def of_own_data(self) -> Metric:
        """The figure on other data than the benchmark's, which compares with none of its figures."""
        return self._replace(task=f"{self.task} (own data)")

    def scaled(self, value: float) -> float:
        """0 for log-mel features, 1 for the best upstream."""
        return (value - self.fbank) / (self.sota - self.fbank)


METRICS = (
    Metric("PR", "per", "PER", True, 82.01, 3.53),
    Metric("ASR", "wer", "WER", True, 23.18, 3.62),
    Metric("KS", "accuracy", "Acc", False, 41.3826674, 96.66),
    Metric("QbE", "mtwv", "MTWV", False, 0.58, 7.36),
    Metric("SID", "accuracy", "Acc", False, 20.058174, 90.33),
    Metric("ASV", "EER", "EER", True, 9.56, 5.11),
    Metric("SD", "der", "DER", True, 10.05, 5.62),
    Metric("IC", "accuracy", "Acc", False, 9.649354219, 98.76),
    Metric("SF", "slot_type_f1", "F1", False, 69.64, 89.81),
    Metric("SF", "slot_value_cer", "CER", True, 52.94, 21.76),
    Metric("ER", "accuracy", "Acc", False, 48.23672168, 67.62),
)
PUBLISHED = {  # table 2 of STaR, in the order of METRICS
    "HuBERT BASE (94.7 M)": (5.41, 6.42, 96.30, 7.36, 81.42, 5.11, 5.88, 98.34, 88.53, 25.20, 64.92),
    "LightHuBERT small (27.0 M)": (6.60, 8.33, 96.07, 7.64, 69.70, 5.42, 5.85, 98.23, 87.58, 26.90, 64.12),
    "ARMHuBERT-S (22.4 M)": (8.63, 10.82, 96.82, 7.20, 63.76, 5.58, 7.01, 97.02, 86.34, 29.02, 62.96),
    "DPHuBERT (23.6 M)": (9.67, 10.47, 96.36, 6.93, 76.83, 5.84, 5.92, 97.92, 86.86, 28.26, 63.16),
    "STaRHuBERT (22.3 M)": (8.16, 9.35, 96.27, 6.88, 77.58, 5.39, 6.05, 97.55, 87.94, 25.31, 63.01),
    "STaRHuBERT-L (26.6 M)": (7.97, 8.91, 96.56, 6.77, 78.66, 5.45, 5.83, 97.50, 88.01, 25.36, 63.48),
}
NOTE = (
    "Overall: mean of all figures, 100 - x for errors (Chen et al., WavLM); generalizability: mean over tasks, 0 for"
    " log-mel features, 1000 for the best upstream (Feng et al. 2023). Rows with sizes: Jang et al., STaR (2024), with"
    " both scores over the tasks of this table. Scores compare over the same tasks only."
)
Figures = Mapping[Metric, float]


def overall(figures: Figures) -> float:
    """Mean of the figures, errors counted as 100 - x (paper 004, §3.1)."""
    return fmean(100 - value if metric.error else value for metric, value in figures.items())


def generalizability(figures: Figures) -> float:
    """1000 times the mean over tasks of the mean over a task's figures, each scaled (Feng et al. 2023, §3)."""
    tasks: dict[str, list[float]] = {}
    for metric, value in figures.items():
        tasks.setdefault(metric.task, []).append(metric.scaled(value))
    return 1000 * fmean(map(fmean, tasks.values()))


def read(experiment: Path) -> tuple[SuperbResult, ...]:
    """An experiment's finished tasks; raises ValueError for a file that is not a result."""
    return tuple(SuperbResult.read(path) for path in superb_files(experiment))


def figures_of(results: Iterable[SuperbResult]) -> dict[Metric, float]:
    """The figures of tasks, in the order of METRICS."""
    found = {result.task: result for result in results}
    own = ((metric, found[metric.task]) for metric in METRICS if metric.task in found)
    return {metric.of_own_data if r.own_data else metric: r.figures[metric.figure] for metric, r in own}


def table(tasks: Mapping[str, Sequence[SuperbResult]]) -> Table | None:
    """Experiments by name, then published models, over the tasks that any experiment has; None without any.

    Scores are over the benchmark's own data alone.
    """
    experiments = {name: figures_of(results) for name, results in tasks.items()}
    every = (kind for metric in METRICS for kind in (metric, metric.of_own_data))
    measured = [metric for metric in every if any(metric in figures for figures in experiments.values())]
    if not measured:
        return None
    published = {name: dict(zip(METRICS, values)) for name, values in PUBLISHED.items()}
    rows = []
    for name, figures in {**experiments, **published}.items():
        present = {metric: figures[metric] for metric in measured if metric in figures}
        if present:
            cells = [f"{present[metric]:.2f}" if metric in present else "-" for metric in measured]
            scored = {metric: value for metric, value in present.items() if metric in METRICS}
            scores = (f"{overall(scored):.1f}", f"{generalizability(scored):.0f}") if scored else ("-", "-")
            rows.append((name, *cells, *scores, str(len({metric.task for metric in present}))))
    head = ("model", *(f"{metric.task} {metric.title}" for metric in measured), "overall", "general.", "tasks")
    return Table(head, tuple(rows))


def distorted_table(tasks: Mapping[str, Sequence[SuperbResult]]) -> Table | None:
    """One row per experiment and figure of its tasks, one column per condition; None without any."""
    measured = {name: [result for result in results if result.conditions] for name, results in tasks.items()}
    conditions = sorted({name for results in measured.values() for result in results for name in result.conditions})
    if not conditions:
        return None
    rows = []
    for metric in METRICS:
        for name, results in measured.items():
            for result in (result for result in results if result.task == metric.task):
                of = {condition: found.figures for condition, found in result.conditions.items()}
                cells = [f"{of[c][metric.figure]:.2f}" if c in of else "-" for c in conditions]
                shown = metric.of_own_data if result.own_data else metric
                rows.append((f"{shown.task} {metric.title}", name, f"{result.figures[metric.figure]:.2f}", *cells))
    return Table(("figure", "model", "clean", *conditions), tuple(rows), fixed=2)


def first_metric(task: str) -> Metric:
    """The first metric of a task, or of "TASK CONDITION"; raises ValueError for one that SUPERB does not have."""
    name, known = task.partition(" ")[0], {metric.task: metric for metric in reversed(METRICS)}
    if name not in known:
        raise ValueError(f"{name!r} is not a task of SUPERB{hint(name, known)}")
    return known[name]


def main_figure(results: Iterable[SuperbResult], task: str) -> float | None:
    """The first figure of a task, or of "TASK CONDITION"; None where it was not measured."""
    metric, condition = first_metric(task), task.partition(" ")[2]
    found = next((result for result in results if result.task == metric.task), None)
    if found is None or (condition and condition not in found.conditions):
        return None
    return (found.conditions[condition] if condition else found).figures[metric.figure]


def sections(runs: Sequence[Run]) -> list[Section]:
    """Sections of a report: the tasks, and their test sets under conditions."""
    tasks = {run.name: run.superb for run in runs}
    made, distorted = table(tasks), distorted_table(tasks)
    found = [("SUPERB (%)", [*made.markdown(), "", NOTE])] if made else []
    return found + ([("SUPERB (%) under distortions", distorted.markdown())] if distorted else [])
