"""Error rates, trainings and streaming of experiments: every figure comes from a result file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from distill.report.paper import steps
from distill.report.results import WerResult
from distill.report.runs import BEAM, GRAPH, UNITS, Run, millions, test_sets
from distill.report.table import Section, Table, number

TITLES = {
    GRAPH: "Word error rate (%), n-gram graph, with 95 % interval",
    UNITS: "Unit error rate (%), best path of the denominator graph, with 95 % interval",
    BEAM: "Word error rate (%), transducer, beam with n-gram, with 95 % interval",
    "transducer_greedy": "Unit error rate (%), transducer, greedy, with 95 % interval",
}


def error_table(runs: Sequence[Run], method: str, summary: bool = False) -> Table:
    """Parameters (M), compression against the teacher and error rates of every experiment and mode.

    summary: each experiment in its main mode alone, with its look-ahead and the RTF of its fastest runtime.
    """
    sets, teacher = test_sets(runs), steps(runs).get("teacher")
    of_model, of_speed = ("model", "mode", "params/M", "smaller"), ("look-ahead/ms", "RTF") if summary else ()
    rows = []
    for run in runs:
        compression = f"{teacher.size / run.size:.1f}x" if teacher else "-"
        rtf = run.fastest.rtf if run.fastest else None
        speed = (number(run.lookahead_ms, 0), number(rtf, 4)) if summary else ()
        for mode in [run.main_mode] if summary else run.modes:
            rates = run.rates(sets, mode, method)
            rows.append((run.name, mode, millions([run]), compression, *rates, *speed))
    return Table((*of_model, *sets, *of_speed), tuple(rows), fixed=len(of_model))


def decoded_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Methods of `TITLES` by which runs were decoded, and these runs: each has a table of error rates."""
    by = {method: [run for run in runs if any(d.method == method for d in run.decodings)] for method in TITLES}
    return {method: some for method, some in by.items() if some}


def zero_error_notes(runs: Iterable[Run], method: str) -> list[str]:
    """A bound for decodings without any error, where a bootstrap interval has no width: the rule of three."""
    return [
        f"{run.name}, {d.test_set}: no error in {d.ref_words:,} words, so the rate is below {300 / d.ref_words:.2f} %"
        " with 95 % confidence (rule of three); a bootstrap of no errors has no width"
        for run in runs
        for d in run.decodings
        if (d.mode, d.method) == (run.main_mode, method) and d.ref_words and not d.wer
    ]


def training_table(runs: Sequence[Run]) -> Table:
    """Sizes, work done and losses of every training."""
    head = ("model", "stage", "trunk/M", "head/M", "training only/M", "updates", "audio/h", "time/min", "train loss",
            "valid loss")  # fmt: skip
    rows = []
    for run in runs:
        result, sizes = run.training, run.training.params
        counts = (f"{(size or 0) / 1e6:.3f}" for size in (sizes.trunk, sizes.head, sizes.training_only))
        work = (str(result.updates), f"{result.audio_hours:.2f}", f"{result.wall_s / 60:.1f}")
        losses = (number(result.train_loss, 3), number(result.valid_loss, 3))
        rows.append((run.name, str(run.stage), *counts, *work, *losses))
    return Table(head, tuple(rows))


def latency_table(runs: Sequence[Run]) -> Table:
    """Chunk and look-ahead (ms) of streaming models; one row per latency that one is decoded at."""
    rows = []
    for run in runs:
        delays = {d.mode: (d.chunk_ms, d.lookahead_mean_ms, d.lookahead_max_ms)
                  for d in run.decodings if d.mode.startswith("streaming")}  # fmt: skip
        for mode, delay in sorted(delays.items(), key=lambda item: item[1][0] or 0.0):
            rows.append((run.name, mode, *(number(value, 0) for value in delay)))
    return Table(("model", "mode", "chunk/ms", "look-ahead mean/ms", "max/ms"), tuple(rows))


def streaming_notes(runs: Iterable[Run]) -> list[str]:
    """For every streaming model: whether `Recogniser.step` makes the same errors as the masked forward."""
    notes = []
    for run in runs:
        pairs = [(d, run.decoding(d.test_set, "offline", d.method)) for d in run.decodings if d.mode == "streaming"]
        both = [(streaming, offline) for streaming, offline in pairs if offline is not None]
        different = [(a, b) for a, b in both if _counts(a) != _counts(b)]
        notes += [
            f"{run.name}: streaming differs from offline on {a.test_set}, {a.method}:"
            f" {a.wer:.3f} % against {b.wer:.3f} %"
            for a, b in different
        ]
        if both and not different:
            notes.append(f"{run.name}: streaming and offline make the same errors in all {len(both)} decodings")
    return notes


def _counts(decoding: WerResult) -> tuple[int, ...]:
    return decoding.ref_words, decoding.sub, decoding.ins, decoding.dele


def sections(runs: Sequence[Run]) -> list[Section]:
    """Error rates, and latency where a model streams."""
    parts: list[Section] = []
    for method, some in decoded_runs(runs).items():
        notes = [f"- {note}" for note in zero_error_notes(some, method)]
        parts.append((TITLES[method], [*error_table(some, method).markdown(), *([""] if notes else []), *notes]))
    latency = latency_table(runs)
    if latency.rows:
        parts.append(("Streaming", [*latency.markdown(), "", *(f"- {note}" for note in streaming_notes(runs))]))
    return parts


def training_sections(runs: Sequence[Run]) -> list[Section]:
    """Trainings, and how they can be repeated."""
    results = [run.training for run in runs]
    facts = {
        "corpus": [result.corpus for result in results],
        "hardware": [result.hardware for result in results],
        "commit": [result.commit for result in results],
    }
    lines = [f"- {name}: {', '.join(dict.fromkeys(values))}" for name, values in facts.items()]
    hours = sum(result.wall_s for result in results) / 3600
    lines.append(f"- training time, all experiments together: {hours:.2f} h")
    commands = dict.fromkeys(result.command for result in results)
    return [
        ("Training", training_table(runs).markdown()),
        ("Provenance", [*lines, "", "```", *commands, "```"]),
    ]
