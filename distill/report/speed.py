"""Speed, memory and word latency of exported models, and error rate beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from distill.report import plots
from distill.report.runs import GRAPH, Run, hardest_set
from distill.report.table import Section, Table, number

PLOT = "pareto"
MEASURED = ("first", "last", "finalisation")
DELAYS = (
    "Audio arrives in real time. First and last word: from the word's end in a forced alignment by the teacher to its"
    " stable appearance in the partial result, that is look-ahead, chunk, model and search together (mean and 90th"
    " percentile), over the utterances recognised without an error; below 0 the search emits the word before its end."
    " Finalisation: from the last sample to the final words, over all utterances."
)


def speed_table(runs: Iterable[Run]) -> Table:
    """Real-time factor (one thread, median and extremes) and memory of each runtime and mode."""
    head = ("model", "mode", "runtime", "RTF", "range", "GMAC/s", "after the end/ms", "peak/MB", "file/MB")
    rows = []
    for run, timing in ((run, run.timing) for run in runs if run.timing):
        for row in timing.rows:
            speed = (f"{row.rtf:.4f}", f"{row.rtf_low:.4f}-{row.rtf_high:.4f}", f"{timing.macs_per_second / 1e9:.2f}")
            rows.append((run.name, row.mode, row.runtime, *speed, f"{row.finalisation_ms:.0f}", f"{row.peak_mb:.0f}",
                         number(row.file_mb, 1)))  # fmt: skip
    return Table(head, tuple(rows), 3)


def delay_table(runs: Iterable[Run]) -> Table:
    """Word latency (ms): the model's look-ahead, and the measurement against an alignment."""
    head = ("model", "mode", "runtime", "look-ahead mean/ms", "max/ms", "first word/ms", "90 %", "last word/ms", "90 %",
            "finalisation/ms", "90 %", "utterances")  # fmt: skip
    rows = []
    for run, timing in ((run, run.timing) for run in runs if run.timing):
        for row in timing.delays:
            values = [timing.lookahead_mean_ms, timing.lookahead_max_ms]
            values += [getattr(row, f"{word}_{kind}_ms") for word in MEASURED for kind in ("mean", "p90")]
            cells = (number(value, 0) for value in values)
            rows.append((run.name, row.mode, row.runtime, *cells, f"{row.right} of {row.utterances}"))
    return Table(head, tuple(rows), 3)


def points(runs: Iterable[Run], test_set: str) -> list[plots.Point]:
    """Every timed way to run a model whose error rate is known; int8 where it was decoded with --runtime int8."""
    result = []
    for run, timing in ((run, run.timing) for run in runs if run.timing):
        for row in timing.rows:
            decoding = run.decoding(test_set, f"{row.mode}-int8" if row.runtime == "int8" else row.mode, GRAPH)
            if decoding is not None:
                delay = decoding.lookahead_mean_ms if row.mode == "streaming" else None
                result.append(plots.Point(run.name, row.mode, row.runtime, decoding.wer, run.size, row.rtf, delay))
    return result


def pareto_table(measured: Sequence[plots.Point], test_set: str) -> Table:
    """The points of the plot, lowest error rate first."""
    best, rows = plots.pareto_optimal(measured), []
    for p in sorted(measured, key=lambda point: (point.wer, point.rtf)):
        figures = (f"{p.wer:.2f}", f"{p.params / 1e6:.2f}", f"{p.rtf:.4f}", number(p.delay, 0))
        rows.append((p.name, p.mode, p.runtime, *figures, "yes" if p in best else "no"))
    head = ("model", "mode", "runtime", f"WER {test_set}", "params/M", "RTF", "look-ahead mean/ms", "Pareto-optimal")
    return Table(head, tuple(rows), 3)


def sections(folder: Path, runs: Sequence[Run]) -> list[Section]:
    """Sections of a report; writes the Pareto plot into the folder."""
    speed, test_set = speed_table(runs), hardest_set(runs)
    if not speed.rows:
        return []
    machine = next(run.timing.hardware for run in runs if run.timing)
    note = f"Processor seconds of one thread, {machine}."
    text: list[Section] = [("Speed and memory", [*speed.markdown(), "", note])]
    delay = delay_table(runs)
    if delay.rows:
        text.append(("Word latency", [*delay.markdown(), "", DELAYS]))
    measured = points(runs, test_set)
    if measured:
        plots.pareto(measured, f"{test_set}: error rate, speed, size and look-ahead", folder / PLOT)
        lines = [*pareto_table(measured, test_set).markdown(), "", f"![Pareto plot]({PLOT}.svg)"]
        text.append(("Error rate, size, speed and look-ahead", lines))
    return text
