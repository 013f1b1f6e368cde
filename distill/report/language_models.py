"""Tables of language models: their perplexities, what decoding with them gives, and whether it is more than chance.

As in report.py every figure comes from a file, those of the paper excepted. Only the standard library is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.files import ASIDE
from distill.report.differences import interval, of_methods, p_value
from distill.report.recognition import (
    GRAPH,
    LM_STAGE,
    PAPER,
    PAPER_LIBRISPEECH,
    PAPER_LIBRISPEECH_TRANSFORMER,
    RESCORED,
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
SMALLER = "3gram"  # of the graph
FEW_ERRORS, LITTLE = 50, 0.1  # errors; share
SYSTEMS = (
    "Our columns with 95 % intervals; other corpora, models and language models than the paper's. Streaming models are"
    " decoded by `encoder.step`. What there is without a language model of words, the best path of the denominator"
    " graph, makes units: its rates stand above."
)
GAINS = (
    "Diff.: in percent absolute against the n-gram graph alone, below 0 it helps; interval of 95 % by paired bootstrap;"
    " p by matched pairs. Dev errors: before and after the weights (of the graph's score, of the language model's, and"
    " a score per word) were chosen on the development set. Best of list: the rate (%) if the best of each utterance's"
    " candidates were taken."
)


def folder_of(exp_dir: Path) -> Path | None:
    """The folder of the Transformer LM below an exp-dir, None where it was not trained."""
    for path in sorted(exp_dir.glob("*/result.json")):
        if ASIDE not in path.parent.name and _read(path)["config"]["stage"] == LM_STAGE:
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
    if not any(d["method"] in RESCORED for run in runs for d in run.decodings):
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
        figures = None if method == "nbest-oracle" else PAPER_BY_LM.get(str(facts.get("lm")), {}).get(role)
        theirs = [f"{x:.2f}" for x in figures] if figures and paper else ["-"] * len(paper)
        size = f"{run.size / 1e6:.2f}"
        yield (ROLES[role], run.name, str(facts.get("lm") or "-"), method, latency, size, *rates, *theirs)


# Whether it helps


def gains_table(exp_dir: Path, runs: Sequence[Run], differences: Sequence[Mapping[str, Any]]) -> Table | None:
    """What every other language model changed beside the graph's, and why not more; None where none was tried."""
    known, rows = _perplexities(exp_dir), []
    for each in differences:
        run = next((run for run in runs if run.name == each["ours"]["experiment"]), None)
        method = each["ours"].get("method", GRAPH)
        decoding = run.decoding(each["set"], each["ours"]["mode"], method) if run and of_methods(each) else None
        if decoding is not None and "tuning" in decoding:
            rows.append(_gain(decoding, each, known))
    head = (
        "model",
        "LM",
        "set",
        "diff.",
        "by utterance",
        "p",
        "verdict",
        "dev errors",
        "graph, LM, word",
        "best of list",
    )
    return Table((*head, "why not"), tuple(rows), 3) if rows else None


def _gain(decoding: Mapping[str, Any], each: Mapping[str, Any], perplexities: Mapping[str, float]) -> tuple[str, ...]:
    found, tuning, weights = each["utterance"], decoding["tuning"], decoding["weights"]
    verdict = "helps" if found["high"] < 0 else "harms" if found["low"] > 0 else "no difference beyond chance"
    why = "-" if found["high"] < 0 else "; ".join(_reasons(decoding, found, perplexities)) or "chance"
    return (
        str(decoding["experiment"]), str(decoding["lm"]), each["set"], f"{found['difference']:+.2f}", interval(found),
        p_value(each), verdict, f"{tuning['before']} before, {tuning['errors']} after",
        f"{weights['graph']:g}, {weights['lm']:g}, {weights['word']:+g}", f"{_oracle(decoding):.2f}", why,
    )  # fmt: skip


def _oracle(decoding: Mapping[str, Any]) -> float:
    """The rate (%) of the best of each list: what no choice among its candidates can beat."""
    return 100 * float(decoding["oracle_errors"]) / max(1, decoding["ref_words"])


def _reasons(decoding: Mapping[str, Any], found: Mapping[str, Any], perplexities: Mapping[str, float]) -> Iterator[str]:
    """The facts behind no gain: what there was to gain, the perplexity, and what dev chose and gained."""
    tuning, name, left = decoding["tuning"], str(decoding["lm"]), found["theirs"] - _oracle(decoding)
    if not found["theirs"]:
        yield "no error was left"
        return
    if left < found["high"] - found["difference"]:
        yield f"the lists leave {left:.2f} to gain, less than chance moves it"
    if name in perplexities and SMALLER in perplexities:
        new, old = perplexities[name], perplexities[SMALLER]
        if new >= old:
            yield f"its perplexity, {new:.1f}, is not below the {SMALLER}'s {old:.1f}"
        elif new > (1 - LITTLE) * old:
            yield f"its perplexity, {new:.1f}, is little below the {SMALLER}'s {old:.1f}"
    gained = tuning["before"] - tuning["errors"]
    if not decoding["weights"]["lm"]:
        yield f"{tuning['set']} gave it no weight"
    elif gained < LITTLE * tuning["before"]:
        yield f"on {tuning['set']} it mended but {gained} of {tuning['before']} errors"
    elif tuning["before"] < FEW_ERRORS:
        yield f"{tuning['before']} errors on {tuning['set']} are few to choose weights by"
    if found["low"] > 0:
        yield f"what suited {tuning['set']} does not suit this set"
    elif found["low"] == found["high"] == 0:
        yield "it changes no error"


def _perplexities(exp_dir: Path) -> dict[str, float]:
    folder = folder_of(exp_dir)
    if folder is None or not (folder / SUMMARY).is_file():
        return {}
    return {name: float(facts["perplexity"]) for name, facts in _read(folder / SUMMARY)["models"].items()}


def sections(exp_dir: Path, runs: Sequence[Run], differences: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Titles and markdown lines for `report.markdown_report`; none without another language model than the graph's."""
    found: list[Section] = []
    perplexities, systems = perplexity_table(exp_dir), systems_table(runs)
    if perplexities is not None:
        found.append(("Language models", [*perplexities.markdown(), "", "Per word, sentence ends counted."]))
    if systems is not None:
        found.append((f"Decoding with language models, as table 5 of {PAPER}", [*systems.markdown(), "", SYSTEMS]))
    gains = gains_table(exp_dir, runs, differences)
    if gains is not None:
        found.append(("What the language models change", [*gains.markdown(), "", GAINS]))
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
