"""Tables of language models: perplexities, error rates by language model, and significance of the differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.config.decoding import OF_UNITS
from distill.report.differences import interval, of_methods, p_value
from distill.report.paper import LIBRISPEECH, PAPER, PAPER_LIBRISPEECH, PAPER_LIBRISPEECH_TRANSFORMER, steps
from distill.report.results import LM_STAGE, Perplexities, TrainingResult
from distill.report.runs import GRAPH, RESCORED, TRANSFORMER, Run, test_sets, trainings
from distill.report.table import Section, Table

SUMMARY = "perplexity/summary.json"  # in the folder of the Transformer LM
ROLES = {"teacher": "teacher", "first step": "student in step 1", "second step": "student in step 2"}
PAPER_BY_LM = {"4gram": PAPER_LIBRISPEECH, "transformer": PAPER_LIBRISPEECH_TRANSFORMER}
SYSTEMS = (
    "Our columns with 95 % intervals; other corpora, models and language models than the paper's. Streaming models are"
    " decoded by `Recogniser.step`. Decoding without a word language model (the best path of the denominator graph)"
    " yields units and has a table of its own."
)
GAINS = (
    "Diff.: in percent absolute against the n-gram graph alone, below 0 is better; interval of 95 % by paired"
    " bootstrap; p by matched pairs. Dev errors: before and after the weights (graph score, LM score, score per word)"
    " were chosen on the development set. Oracle: the rate (%) of the best candidate of each list."
)


def folder_of(exp_dir: Path) -> tuple[TrainingResult, Path] | None:
    """The Transformer LM below an exp-dir: its training and folder; None where it was not trained."""
    return next((each for each in trainings(exp_dir) if each[0].stage == LM_STAGE), None)


def files(exp_dir: Path) -> list[str]:
    """Names, in exp-dir, of the language model's files that this report reads."""
    trained = folder_of(exp_dir)
    return [f"{trained[1].name}/{name}" for name in ("result.json", SUMMARY)] if trained else []


def perplexity_table(exp_dir: Path) -> Table | None:
    """Perplexity per word of every language model, None where it was not measured."""
    trained = folder_of(exp_dir)
    if trained is None or not (trained[1] / SUMMARY).is_file():
        return None
    result, summary = trained[0], Perplexities.read(trained[1] / SUMMARY)
    rows = []
    for name, model in summary.models.items():
        work = ("-", "-", "-")
        if name == "transformer":
            parameters = result.params.kept + (result.params.training_only or 0)
            work = (f"{parameters / 1e6:.2f}", str(result.updates), f"{result.wall_s / 60:.1f}")
        unknown = "-" if model.unknown is None else str(model.unknown)
        rows.append((name, f"{model.perplexity:.2f}", unknown, *work))
    head = ("language model", f"perplexity, {summary.test_set}", "unknown words", "params/M", "updates", "time/min")
    return Table(head, tuple(rows))


def systems_table(runs: Sequence[Run]) -> Table | None:
    """Table 5 of the paper: system, language model, latency, size, rates; None unless there is rescoring."""
    if not any(d.method in RESCORED for run in runs for d in run.decodings):
        return None
    sets, roles = test_sets(runs), steps(runs)
    paper = LIBRISPEECH if set(LIBRISPEECH) <= set(sets) else ()
    rows = []
    for role, run in ((role, roles[role]) for role in ROLES if role in roles):
        methods = {d.method: d for d in run.decodings if d.mode == run.main_mode and d.method not in OF_UNITS}
        for method in sorted(methods, key=lambda name: (name == TRANSFORMER, name != GRAPH, name)):
            decoding = methods[method]
            delay = f"yes/{decoding.lookahead_mean_ms:.0f}ms" if run.main_mode == "streaming" else "no"
            figures = None if method == "nbest-oracle" else PAPER_BY_LM.get(decoding.lm or "", {}).get(role)
            theirs = [f"{x:.2f}" for x in figures] if figures and paper else ["-"] * len(paper)
            system = (ROLES[role], run.name, decoding.lm or "-", method, delay, f"{run.size / 1e6:.2f}")
            rows.append((*system, *run.rates(sets, run.main_mode, method), *theirs))
    head = ("system", "model", "LM", "method", "streaming", "params/M", *sets, *(f"paper: {name}" for name in paper))
    return Table(head, tuple(rows), 4)


def gains_table(runs: Sequence[Run], differences: Sequence[Mapping[str, Any]]) -> Table | None:
    """The difference that each language model makes beside the graph's, and its p; None where none was used."""
    rows, by_name = [], {run.name: run for run in runs}
    for each in filter(of_methods, differences):
        ours, change = each["ours"], each["utterance"]
        run = by_name.get(ours["experiment"])
        decoding = run.decoding(each["set"], ours["mode"], ours["method"]) if run else None
        if decoding is None or decoding.tuning is None or decoding.weights is None:
            continue
        weights, tuning = decoding.weights, decoding.tuning
        oracle = 100 * (decoding.oracle_errors or 0) / max(1, decoding.ref_words)
        rows.append((
            decoding.experiment, decoding.lm or "-", each["set"], f"{change['difference']:+.2f}", interval(change),
            p_value(each), f"{tuning.before} before, {tuning.errors} after",
            f"{weights.graph:g}, {weights.lm:g}, {weights.word:+g}", f"{oracle:.2f}",
        ))  # fmt: skip
    head = ("model", "LM", "set", "diff.", "by utterance", "p", "dev errors", "graph, LM, word", "oracle")
    return Table(head, tuple(rows), 3) if rows else None


def sections(exp_dir: Path, runs: Sequence[Run], differences: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Titles and markdown lines; none without another language model than the graph's."""
    parts = (
        ("Language models", perplexity_table(exp_dir), "Per word, sentence ends counted."),
        (f"Decoding with language models, as table 5 of {PAPER}", systems_table(runs), SYSTEMS),
        ("Effect of the language models", gains_table(runs, differences), GAINS),
    )
    return [(title, [*table.markdown(), "", note]) for title, table, note in parts if table is not None]
