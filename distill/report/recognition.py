"""Tables from result.json and wer.json: what a reader compares, with the paper's figures beside it.

Nothing here measures or guesses: every figure comes from a file, except those of the paper, which stand
in PAPER_* with their table. Only the standard library is imported.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.files import ASIDE, replacing

TIMING = "export/timing.json"
GRAPH, UNITS, TRANSFORMER = "1best", "greedy", "transformer-lm"
RESCORED = ("nbest-rescoring", "whole-lattice-rescoring", TRANSFORMER)  # with another language model than the graph's
TITLES = {
    GRAPH: "Word error rate (%), n-gram graph, with 95 % interval",
    UNITS: "Unit error rate (%), best path of the denominator graph, with 95 % interval",
}
LM_STAGE = 11  # a folder of that stage holds the Transformer LM, which is no recogniser
PAPER = "Fu et al., DistillW2V2 (2023)"
PAPER_OBJECTIVES = {  # table 3: objective -> (hidden, prediction, Gigaspeech, in-house)
    "T": ("-", "-", 11.84, 17.56),
    "M1": ("-", "MSE", 14.29, 20.83),
    "M2": ("-", "LF-MMI", 13.54, 20.22),
    "M3": ("MSE", "LF-MMI", 12.35, 18.60),
    "M4": ("MSE", "MSE and LF-MMI", 12.37, 18.41),
}
PAPER_STEPS = {  # table 2: step -> (Gigaspeech, in-house)
    "teacher": (11.84, 17.56),
    "single step": (15.58, 22.36),
    "first step": (12.37, 18.41),
    "second step": (12.90, 19.25),
}
PAPER_LIBRISPEECH = {  # table 5, 4-gram: step -> (test-clean, test-other)
    "teacher": (2.91, 5.43),
    "first step": (3.29, 6.63),
    "second step": (3.54, 7.57),
}
PAPER_LIBRISPEECH_TRANSFORMER = {  # table 5, Transformer language model
    "teacher": (2.2, 4.26),
    "first step": (2.42, 4.83),
    "second step": (2.50, 5.27),
}


@dataclass(frozen=True)
class Run:
    """One experiment: its name, its result.json, the wer.json of its decodings, and its timing.json if there is one."""

    name: str
    result: Mapping[str, Any]
    decodings: tuple[Mapping[str, Any], ...]
    timing: Mapping[str, Any] | None = None

    @property
    def stage(self) -> int:
        return int(self.result["config"]["stage"])

    @property
    def streams(self) -> bool:
        return bool(self.result["config"]["model"]["streaming"]["chunk_frames"])

    @property
    def size(self) -> int:
        """Parameters that are kept after training."""
        return int(self.result["params"]["trunk"]) + int(self.result["params"]["head"])

    @property
    def modes(self) -> list[str]:
        return sorted({str(d["mode"]) for d in self.decodings})

    @property
    def main_mode(self) -> str:
        """The mode whose rates stand for the model: streaming, where it was decoded so."""
        return "streaming" if "streaming" in self.modes else "offline"

    def decoding(self, test_set: str, mode: str, method: str) -> Mapping[str, Any] | None:
        """The wer.json of one decoding, None where it was not done."""
        wanted = (test_set, mode, method)
        return next((d for d in self.decodings if (d["set"], d["mode"], d["method"]) == wanted), None)


def read_runs(folder: Path) -> list[Run]:
    """The experiments below a folder, by stage and name.

    Raises FileNotFoundError if none of them has a result.json, ValueError for a file that is not JSON.
    """
    found = [_read_run(path.parent) for path in sorted(folder.glob("*/result.json")) if ASIDE not in path.parent.name]
    runs = [run for run in found if run.stage != LM_STAGE]
    if not runs:
        raise FileNotFoundError(
            f"no trained experiment in {folder}: expected */result.json, which stages 6, 8 and 9 make;"
            " run.sh --stage 6 --stop-stage 9 with the same options"
        )
    return sorted(runs, key=lambda run: (run.stage, run.name))


def _read_run(folder: Path) -> Run:
    decodings = tuple(_read(path) for path in decoded(folder))
    timing = folder / TIMING
    return Run(folder.name, _read(folder / "result.json"), decodings, _read(timing) if timing.is_file() else None)


def decoded(folder: Path) -> list[Path]:
    """The wer.json of an experiment's decodings, but those of a killed stage (*.tmp) and those put aside."""
    found = sorted(folder.glob("decode_*/wer.json"))
    return [path for path in found if path.parent.suffix not in (".tmp", ".old") and ASIDE not in path.parent.name]


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); remove it and run its stage again") from None


def test_sets(runs: Iterable[Run]) -> list[str]:
    """Names of the sets that any experiment was decoded on, sorted."""
    return sorted({str(d["set"]) for run in runs for d in run.decodings})


# Tables: a heading and rows of text


@dataclass(frozen=True)
class Table:
    """A heading and rows; the first `fixed` columns are repeated when a table is cut to the terminal's width."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    fixed: int = 1

    def markdown(self) -> list[str]:
        """Lines of a markdown table; all but the first column to the right."""
        rule = ["---"] + ["---:"] * (len(self.head) - 1)
        return ["| " + " | ".join(row) + " |" for row in (self.head, rule, *self.rows)]

    def terminal(self, width: int = 100) -> list[str]:
        """Aligned lines of at most `width` columns; what does not fit beside stands below."""
        widths = [max(len(row[i]) for row in (self.head, *self.rows)) for i in range(len(self.head))]
        lines: list[str] = []
        for columns in self._groups(widths, width):
            lines += [""] if lines else []
            chosen = [widths[i] for i in columns]
            lines += [_aligned([row[i] for i in columns], chosen) for row in (self.head, *self.rows)]
        return lines

    def _groups(self, widths: Sequence[int], width: int) -> Iterator[list[int]]:
        fixed = list(range(self.fixed))
        group = list(fixed)
        for column in range(self.fixed, len(widths)):
            if len(group) > len(fixed) and sum(widths[i] + 2 for i in [*group, column]) - 2 > width:
                yield group
                group = list(fixed)
            group.append(column)
        yield group


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))]).rstrip()


def error_table(runs: Sequence[Run], method: str) -> Table:
    """Parameters (M), compression against the teacher and error rates of every experiment and mode."""
    sets, teacher = test_sets(runs), _teacher(runs)
    rows = []
    for run in runs:
        compression = f"{teacher.size / run.size:.1f}x" if teacher else "-"
        for mode in run.modes:
            cells = [rate_cell(run.decoding(test_set, mode, method)) for test_set in sets]
            rows.append((run.name, mode, f"{run.size / 1e6:.2f}", compression, *cells))
    return Table(("model", "mode", "params/M", "smaller", *sets), tuple(rows), fixed=4)


def rate_cell(decoding: Mapping[str, Any] | None) -> str:
    """'12.34 [11.2-13.5]', or '-' where nothing was decoded."""
    if decoding is None:
        return "-"
    low, high = decoding["ci95"]
    return f"{decoding['wer']:.2f} [{low:.1f}-{high:.1f}]"


def notes_without_errors(runs: Iterable[Run], method: str) -> list[str]:
    """What is known where no error was made, which a bootstrap cannot say: the rule of three."""
    return [
        f"{run.name}, {d['set']}: no error in {d['ref_words']:,}, so the rate is below {300 / d['ref_words']:.2f} %"
        " with 95 % confidence (rule of three); a bootstrap of no errors has no width"
        for run in runs
        for d in run.decodings
        if (d["mode"], d["method"]) == (run.main_mode, method) and d["ref_words"] and not d["wer"]
    ]


def training_table(runs: Sequence[Run]) -> Table:
    """Sizes, work done and losses of every training."""
    sizes = ("trunk/M", "head/M", "training only/M")
    head = ("model", "stage", *sizes, "updates", "audio/h", "time/min", "train loss", "valid loss")
    return Table(head, tuple(_training_row(run) for run in runs))


def _training_row(run: Run) -> tuple[str, ...]:
    result, params = run.result, run.result["params"]
    sizes = (f"{params[kind] / 1e6:.3f}" for kind in ("trunk", "head", "training_only"))
    losses = (_number(result[kind], 3) for kind in ("train_loss", "valid_loss"))
    work = (str(result["updates"]), f"{result['audio_hours']:.2f}", f"{result['wall_s'] / 60:.1f}")
    return (run.name, str(run.stage), *sizes, *work, *losses)


def latency_table(runs: Sequence[Run]) -> Table:
    """Chunk and look-ahead (ms) of the models that stream; a row for each latency that one is decoded at."""
    keys = ("chunk_ms", "lookahead_mean_ms", "lookahead_max_ms")
    rows = []
    for run in runs:
        delays = {d["mode"]: [d[key] for key in keys] for d in run.decodings if str(d["mode"]).startswith("streaming")}
        for mode, delay in sorted(delays.items(), key=lambda item: item[1][0]):
            rows.append((run.name, mode, *(_number(value, 0) for value in delay)))
    return Table(("model", "mode", "chunk/ms", "look-ahead mean/ms", "max/ms"), tuple(rows))


def _number(value: Any, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _teacher(runs: Iterable[Run]) -> Run | None:
    return next((run for run in runs if run.stage == 6), None)


# Streaming against the masked forward


def streaming_notes(runs: Iterable[Run]) -> list[str]:
    """For every streaming model: whether `encoder.step` made the same errors as the masked forward."""
    notes = []
    for run in runs:
        pairs = [(d, run.decoding(d["set"], "offline", d["method"])) for d in run.decodings if d["mode"] == "streaming"]
        both = [(streaming, offline) for streaming, offline in pairs if offline is not None]
        different = [_difference(*pair) for pair in both if _counts(pair[0]) != _counts(pair[1])]
        notes += [f"{run.name}: streaming differs from offline on {text}" for text in different]
        if both and not different:
            notes.append(f"{run.name}: streaming and offline make the same errors in all {len(both)} decodings")
    return notes


def _counts(decoding: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(decoding[key] for key in ("ref_words", "sub", "ins", "del"))


def _difference(streaming: Mapping[str, Any], offline: Mapping[str, Any]) -> str:
    return f"{streaming['set']}, {streaming['method']}: {streaming['wer']:.3f} % against {offline['wer']:.3f} %"


# The paper's tables


def steps(runs: Sequence[Run]) -> dict[str, Run]:
    """Teacher, single step, first step and second step of papers/001, those that were run."""
    found: dict[str, Run] = {}
    by_name = {run.name: run for run in runs}
    for run in runs:
        if run.stage == 6:
            found.setdefault("teacher", run)
        elif run.stage == 8 and run.streams:
            found.setdefault("single step", run)
        elif run.stage == 9 and run.result["config"]["init"] in by_name:
            found.setdefault("second step", run)
            found.setdefault("first step", by_name[run.result["config"]["init"]])
    if "first step" not in found:
        plain = [run for run in runs if run.stage == 8 and not run.streams and run.name not in ("m1", "m2", "m3")]
        found.update({"first step": plain[0]} if plain else {})
    return found


def objective_table(runs: Sequence[Run]) -> Table | None:
    """Table 3 of the paper with our figures, None unless m1, m2 or m3 was run."""
    roles, by_name = steps(runs), {run.name: run for run in runs}
    ours = {name.upper(): by_name[name] for name in ("m1", "m2", "m3") if name in by_name}
    if not ours:
        return None
    ours |= {new: roles[old] for new, old in (("T", "teacher"), ("M4", "first step")) if old in roles}
    sets = test_sets(ours.values())
    rows = []
    for name, (hidden, output, *paper) in PAPER_OBJECTIVES.items():
        rows.append((name, hidden, output, *_main_rates(ours.get(name), sets), *(f"{x:.2f}" for x in paper)))
    return Table(("objective", "hidden", "prediction", *sets, "paper: Gigaspeech", "paper: in-house"), tuple(rows), 3)


def step_table(runs: Sequence[Run]) -> Table:
    """Table 2 of the paper (and its table 5 on LibriSpeech's test sets) with our figures."""
    roles, sets = steps(runs), test_sets(runs)
    libri = {"test-clean", "test-other"} <= set(sets)
    rows = []
    for step, paper in PAPER_STEPS.items():
        run = roles.get(step)
        row = [step, run.name if run else "-", *_main_rates(run, sets), *(f"{x:.2f}" for x in paper)]
        if libri:
            row += [f"{x:.2f}" for x in PAPER_LIBRISPEECH[step]] if step in PAPER_LIBRISPEECH else ["-", "-"]
        rows.append(tuple(row))
    head = ("step", "model", *sets, "paper: Gigaspeech", "paper: in-house")
    head += ("paper: LibriSpeech test-clean", "paper: LibriSpeech test-other") if libri else ()
    return Table(head, tuple(rows), 2)


def _main_rates(run: Run | None, sets: Sequence[str]) -> list[str]:
    if run is None:
        return ["-"] * len(sets)
    return [rate_cell(run.decoding(test_set, run.main_mode, GRAPH)) for test_set in sets]


# Whole reports


def terminal_report(runs: Sequence[Run], width: int = 100) -> str:
    """What a recipe prints at its end."""
    lines: list[str] = []
    for method, title in TITLES.items():
        lines += [title, *error_table(runs, method).terminal(width), ""]
    latency = latency_table(runs)
    if latency.rows:
        lines += ["Streaming", *latency.terminal(width), *streaming_notes(runs), ""]
    return "\n".join(lines)


Section = tuple[str, list[str]]


def markdown_report(runs: Sequence[Run], level: int = 2, further: Sequence[Section] = ()) -> str:
    """Everything known of the runs, as sections below a heading of `level - 1`; further: other modules' sections."""
    heading = "#" * level
    lines: list[str] = []
    for title, body in _sections(runs, further):
        lines += [f"{heading} {title}", "", *body, ""]
    return "\n".join(lines)


def _sections(runs: Sequence[Run], further: Sequence[Section]) -> Iterator[Section]:
    for method, title in TITLES.items():
        without = [f"- {note}" for note in notes_without_errors(runs, method)]
        yield title, [*error_table(runs, method).markdown(), *([""] if without else []), *without]
    latency = latency_table(runs)
    if latency.rows:
        notes = [f"- {note}" for note in streaming_notes(runs)]
        yield "Streaming", [*latency.markdown(), "", *notes]
    ours = "our columns: n-gram graph, SS by `encoder.step`; other corpora and sizes than the paper's"
    yield f"Two steps, as tables 2 and 5 of {PAPER}", [*step_table(runs).markdown(), "", ours]
    objectives = objective_table(runs)
    if objectives is not None:
        yield f"Objectives of the first step, as table 3 of {PAPER}", [*objectives.markdown(), "", ours]
    yield from further
    yield "Training", training_table(runs).markdown()
    yield "How it was made", _provenance(runs)


def _provenance(runs: Sequence[Run]) -> list[str]:
    facts = [f"- {name}: {', '.join(_distinct(runs, key))}" for name, key in (
        ("corpus", "corpus"), ("hardware", "hardware"), ("commit", "commit"))]  # fmt: skip
    hours = sum(run.result["wall_s"] for run in runs) / 3600
    facts.append(f"- training time, all experiments together: {hours:.2f} h")
    return [*facts, "", "```", *_distinct(runs, "command"), "```"]


def _distinct(runs: Sequence[Run], key: str) -> list[str]:
    return list(dict.fromkeys(str(run.result.get(key, "unknown")) for run in runs))


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


# Committed results


def collect(exp_dir: Path, target: Path, root: Path, further: Sequence[str] = ()) -> list[Path]:
    """Copy result.json, wer.json, timing.json and `further` files of an exp-dir into `target`, no machine path in them.

    Returns the copies; further: names of JSON files in exp-dir itself, copied where they are there.

    Raises FileNotFoundError if there is nothing to copy.
    """
    paths = [path for path in (exp_dir / name for name in further) if path.is_file()]
    for run in read_runs(exp_dir):
        paths += [exp_dir / run.name / "result.json", *decoded(exp_dir / run.name)]
        paths += [] if run.timing is None else [exp_dir / run.name / TIMING]
    copies = []
    for path in paths:
        content = portable(_read(path), root)
        copies.append(target / path.relative_to(exp_dir))
        write_text(copies[-1], json.dumps(content, indent=1, sort_keys=True) + "\n")
    return copies


def portable(value: Any, root: Path) -> Any:
    """The value with every absolute path in it relative to `root`, or cut to its last part if it lies elsewhere."""
    if isinstance(value, Mapping):
        return {key: portable(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item, root) for item in value]
    if isinstance(value, str) and "/" in value:
        return _portable_text(value, root)
    return value


def _portable_text(text: str, root: Path) -> str:
    try:
        words = shlex.split(text)
    except ValueError:
        return text.replace(f"{root}/", "")
    if not any(word.startswith("/") for word in words):
        return text
    return shlex.join(_portable_path(word, root) if word.startswith("/") else word for word in words)


def _portable_path(path: str, root: Path) -> str:
    relative = os.path.relpath(path, root)
    return Path(path).name if relative.startswith("../..") else relative
