"""Tables of what stage 12 measured, and error rate beside size, speed and delay.

Only the standard library is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from distill.report import pareto
from distill.report.recognition import GRAPH, Run, Table, write_text

PLOT = "pareto.svg"
MEASURED = ("first", "last", "finalisation")
DELAYS = (
    "Audio comes at the speed at which it is spoken. First and last word: from its end, in the alignment that the"
    " teacher's log-probabilities give the transcript, to when it is shown for good; look-ahead, waiting for the chunk,"
    " model and search together (mean and 90th percentile), over the utterances that were recognised without an error;"
    " below 0 the search knew it before it was over. Finalisation: from the last sample to the final words, over all."
)


def speed_table(runs: Iterable[Run]) -> Table:
    """Real-time factor (one thread, median and extremes) and memory of every way that stage 12 ran a model."""
    head = ("model", "mode", "runtime", "RTF", "range", "GMAC/s", "after the end/ms", "peak/MB", "file/MB")
    rows = []
    for run in runs:
        timing = run.timing or {"rows": ()}
        for row in timing["rows"]:
            spread, cost = f"{row['rtf_low']:.4f}-{row['rtf_high']:.4f}", f"{timing['macs_per_second'] / 1e9:.2f}"
            file = "-" if row["file_mb"] is None else f"{row['file_mb']:.1f}"
            more = (cost, f"{row['finalisation_ms']:.0f}", f"{row['peak_mb']:.0f}", file)
            rows.append((run.name, row["mode"], row["runtime"], f"{row['rtf']:.4f}", spread, *more))
    return Table(head, tuple(rows), 3)


def delay_table(runs: Iterable[Run]) -> Table:
    """How late words are shown (ms): the model's look-ahead, and what stage 12 measured against an alignment."""
    head = ("model", "mode", "runtime", "look-ahead mean/ms", "max/ms", "first word/ms", "90 %", "last word/ms", "90 %",
            "finalisation/ms", "90 %", "utterances")  # fmt: skip
    rows = []
    for run in runs:
        timing = run.timing or {}
        for row in timing.get("delays", ()):
            ahead = (timing["lookahead_mean_ms"], timing["lookahead_max_ms"])
            shown = (row[f"{word}_{kind}_ms"] for word in MEASURED for kind in ("mean", "p90"))
            cells = ("-" if value is None else f"{value:.0f}" for value in (*ahead, *shown))
            rows.append((run.name, row["mode"], row["runtime"], *cells, f"{row['right']} of {row['utterances']}"))
    return Table(head, tuple(rows), 3)


def pareto_table(found: Sequence[pareto.Point], test_set: str) -> Table:
    """The points of the plot, lowest error rate first."""
    best, rows = pareto.unbeaten(found), []
    for p in sorted(found, key=lambda point: (point.wer, point.rtf)):
        delay = "-" if p.delay is None else f"{p.delay:.0f}"
        figures = (f"{p.wer:.2f}", f"{p.params / 1e6:.2f}", f"{p.rtf:.4f}", delay)
        rows.append((p.name, p.mode, p.runtime, *figures, "yes" if p in best else "no"))
    head = ("model", "mode", "runtime", f"WER {test_set}", "params/M", "RTF", "look-ahead mean/ms", "unbeaten")
    return Table(head, tuple(rows), 3)


def hardest_set(runs: Sequence[Run]) -> str:
    """The test set with the highest mean error rate over the graph; empty where nothing was decoded."""
    rates: dict[str, list[float]] = {}
    for run in runs:
        for decoding in run.decodings:
            if decoding["method"] == GRAPH:
                rates.setdefault(str(decoding["set"]), []).append(float(decoding["wer"]))
    return max(rates, key=lambda name: sum(rates[name]) / len(rates[name]), default="")


def sections(runs: Sequence[Run], plot: Path, plot_name: str = PLOT) -> list[tuple[str, list[str]]]:
    """Sections of a report; writes the plot to a file, which the report knows as `plot_name`."""
    speed, test_set = speed_table(runs), hardest_set(runs)
    if not speed.rows:
        return []
    machine = next(str(run.timing["hardware"]) for run in runs if run.timing)
    text = [("Speed and memory", [*speed.markdown(), "", f"seconds of one processor thread, {machine}"])]
    delay = delay_table(runs)
    if delay.rows:
        text.append(("Delay of words", [*delay.markdown(), "", DELAYS]))
    found = pareto.points(runs, test_set, GRAPH)
    if found:
        write_text(plot, pareto.svg(found, f"{test_set}: error rate, speed, size and delay"))
        table = pareto_table(found, test_set).markdown()
        text.append(("Error rate, size, speed and delay", [*table, "", f"![Pareto plot]({plot_name})"]))
    return text


def terminal(runs: Sequence[Run], width: int = 100) -> str:
    """What a recipe prints of it at its end."""
    table = speed_table(runs)
    return "\n".join(["Speed and memory, one thread", *table.terminal(width), ""]) if table.rows else ""
