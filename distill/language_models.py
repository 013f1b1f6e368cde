"""Tables of language models: their perplexities, what decoding with them gives, and whether it is more than chance.

As in report.py every figure comes from a file, those of the paper excepted. Only the standard library is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.report import (
    GRAPH,
    LM_STAGE,
    PAPER,
    PAPER_LIBRISPEECH,
    PAPER_LIBRISPEECH_TRANSFORMER,
    TRANSFORMER,
    UNITS,
    Run,
    Section,
    Table,
    rate_cell,
    steps,
    test_sets,
)

SUMMARY = "perplexity/summary.json"  # in the folder of the Transformer LM
ROLES = {"teacher": "teacher", "first step": "student in step 1", "second step": "student in step 2"}
PAPER_BY_LM = {"4gram": PAPER_LIBRISPEECH, "transformer": PAPER_LIBRISPEECH_TRANSFORMER}


def folder_of(exp_dir: Path) -> Path | None:
    """The folder of the Transformer LM below an exp-dir, None where it was not trained."""
    for path in sorted(exp_dir.glob("*/result.json")):
        if _read(path)["config"]["stage"] == LM_STAGE:
            return path.parent
    return None


def files(exp_dir: Path) -> list[str]:
    """Names, in exp-dir, of what this report reads of the language model."""
    folder = folder_of(exp_dir)
    if folder is None:
        return []
    return [f"{folder.name}/{name}" for name in ("result.json", SUMMARY) if (folder / name).is_file()]


def perplexity_table(exp_dir: Path) -> Table | None:
    """Perplexity per word of every language model, None where it was not measured."""
    folder = folder_of(exp_dir)
    if folder is None or not (folder / SUMMARY).is_file():
        return None
    summary, result = _read(folder / SUMMARY), _read(folder / "result.json")
    rows = []
    for name, facts in summary["models"].items():
        trained = name == "transformer"
        size = f"{sum(result['params'].values()) / 1e6:.2f}" if trained else "-"
        work = (str(result["updates"]), f"{result['wall_s'] / 60:.1f}") if trained else ("-", "-")
        rows.append((name, f"{facts['perplexity']:.2f}", str(facts.get("unknown", "-")), size, *work))
    head = ("language model", f"perplexity, {summary['set']}", "unknown words", "params/M", "updates", "time/min")
    return Table(head, tuple(rows))


def systems_table(runs: Sequence[Run]) -> Table | None:
    """Table 5 of the paper: system, language model, latency, size, rates; None unless there is rescoring."""
    if not any(d["method"] == TRANSFORMER for run in runs for d in run.decodings):
        return None
    sets = test_sets(runs)
    paper = ("test-clean", "test-other") if {"test-clean", "test-other"} <= set(sets) else ()
    roles = steps(runs)
    rows = [row for role in ROLES if role in roles for row in _systems(role, roles[role], sets, paper)]
    head = ("system", "model", "LM", "method", "streaming", "params/M", *sets, *(f"paper: {name}" for name in paper))
    return Table(head, tuple(rows), 4)


def _systems(role: str, run: Run, sets: Sequence[str], paper: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """A row for each way with words that a model's main mode was decoded in, n-gram graph first."""
    ways = {str(d["method"]): d for d in run.decodings if d["mode"] == run.main_mode and d["method"] != UNITS}
    for method in sorted(ways, key=lambda name: (name == TRANSFORMER, name != GRAPH, name)):
        facts = ways[method]
        latency = f"yes/{facts['lookahead_mean_ms']:.0f}ms" if run.main_mode == "streaming" else "no"
        rates = [rate_cell(run.decoding(name, run.main_mode, method)) for name in sets]
        figures = PAPER_BY_LM.get(str(facts.get("lm")), {}).get(role)
        theirs = [f"{x:.2f}" for x in figures] if figures and paper else ["-"] * len(paper)
        size = f"{run.size / 1e6:.2f}"
        yield (ROLES[role], run.name, str(facts.get("lm") or "-"), method, latency, size, *rates, *theirs)


# Whether it helps


def notes(runs: Sequence[Run], differences: Sequence[Mapping[str, Any]]) -> list[str]:
    """For every rescored decoding: by how much it differs from the n-gram graph's, and what its candidates allowed."""
    found = []
    for each in differences:
        if each["ours"].get("method") != TRANSFORMER:
            continue
        run = next(run for run in runs if run.name == each["ours"]["experiment"])
        decoding = run.decoding(each["set"], each["ours"]["mode"], TRANSFORMER)
        if decoding is not None:
            found.append(f"{run.name}, {each['set']}: {_verdict(each['utterance'])}; {_reasons(decoding)}")
    return found


def _verdict(difference: Mapping[str, Any]) -> str:
    change = f"{difference['difference']:+.2f} % absolute [{difference['low']:+.2f}, {difference['high']:+.2f}]"
    if difference["high"] < 0:
        return f"helps, {change}"
    if difference["low"] > 0:
        return f"harms, {change}"
    return f"no difference beyond chance, {change}"


def _reasons(decoding: Mapping[str, Any]) -> str:
    """Facts that explain it: what was tuned, on how many errors, and the best that was to be had."""
    tuning, weights = decoding["tuning"], decoding["weights"]
    chosen = f"graph {weights['graph']:g}, LM {weights['lm']:g}, word {weights['word']:+g}"
    best = 100 * decoding["oracle_errors"] / max(1, decoding["ref_words"])
    return (
        f"weights {chosen}, chosen on {tuning['set']} ({tuning['before']} errors before, {tuning['errors']} after);"
        f" the best of at most {decoding['nbest']} candidates would give {best:.2f} %"
    )


def sections(exp_dir: Path, runs: Sequence[Run], differences: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Titles and markdown lines for `report.markdown_report`; none without a Transformer LM."""
    found: list[Section] = []
    perplexities, systems = perplexity_table(exp_dir), systems_table(runs)
    if perplexities is not None:
        found.append(("Language models", [*perplexities.markdown(), "", "Per word, sentence ends counted."]))
    if systems is not None:
        ours = "Our columns with 95 % intervals; other corpora, models and language models than the paper's."
        body = [*systems.markdown(), "", ours, "", *(f"- {note}" for note in notes(runs, differences))]
        found.append((f"Decoding with language models, as table 5 of {PAPER}", body))
    return found


def terminal(exp_dir: Path, runs: Sequence[Run], width: int = 100) -> str:
    """What a recipe prints of them; empty without a Transformer LM."""
    tables = {
        "Language models, perplexity per word": perplexity_table(exp_dir),
        "Word error rate (%) by language model": systems_table(runs),
    }
    return "\n".join(
        line for title, table in tables.items() if table is not None for line in (title, *table.terminal(width), "")
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); remove it and run its stage again") from None
