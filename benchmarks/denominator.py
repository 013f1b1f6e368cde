"""Time and memory from text to denominator, by size of the text, order and style of the n-gram; one core.

The text is drawn: words by Zipf's law from a vocabulary with drawn pronunciations, a tenth of the words with
two. --text and --lang take a text and a lang folder instead. Every case runs in a process of its own; ratios are
of processor time, to the bigram of a million words. The grammar of a word 3-gram is timed beside kaldilm's.
Perplexities are per unit, on the text's last sentences, which a text that is long enough does not read before; a
chain-style n-gram has no path for some of them, which are counted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.table import finish

if TYPE_CHECKING:
    from distill.config.graphs import Graphs
    from distill.fsa.graph import Fsa
    from distill.graphs.lexicon import Lang

PHONES = [f"P{n:02}" for n in range(1, 39)]
VOCABULARY = 20_000
SENTENCE = (5, 35)  # words
HELD_OUT = 2000  # sentences for perplexities
CASES = [
    # order, style, millions of words
    *((2, "interpolated", size) for size in (0.1, 0.3, 1.0, 3.0)),
    *((3, "interpolated", size) for size in (0.1, 0.3, 1.0, 3.0)),
    *((4, "interpolated", size) for size in (0.1, 0.3, 1.0, 3.0)),
    *((4, "chain", size) for size in (0.1, 0.3, 1.0, 3.0)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="one sentence a line; repeated if it is too short")
    parser.add_argument("--lang", type=Path, help="its lang folder")
    parser.add_argument("--most", type=float, default=3.0, help="largest text, in millions of words")
    parser.add_argument("--repeat", type=int, default=1, help="runs per case; the median counts")
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run_case(json.loads(args.case))))
        return
    if (args.text is None) != (args.lang is None):
        parser.error("--text and --lang belong together")
    with tempfile.TemporaryDirectory() as folder:
        text, lang = (args.text, args.lang) if args.text else drawn_text(Path(folder), args.most)
        rows = [measured(text, lang, case, args.repeat) for case in CASES if case[2] <= args.most]
        rows += grammars(text, lang, Path(folder), min(1.0, args.most))
    base = next((row["cpu_seconds"] for row in rows if row["case"] == "2-gram interpolated, 1 M words"), None)
    for row in rows:
        row.setdefault("ratio", round(row["cpu_seconds"] / base, 2) if base else None)
    finish(rows, args.json)


def drawn_text(folder: Path, millions: float) -> tuple[Path, Path]:
    """A text of so many words and the lang folder of its vocabulary."""
    from distill.graphs.lexicon import Lexicon, write_lang

    rng = random.Random(0)
    words = [f"W{n}" for n in range(VOCABULARY)]
    lexicon = {}
    for word in words:
        count = 2 if rng.random() < 0.1 else 1
        lexicon[word] = tuple(dict.fromkeys(tuple(rng.choices(PHONES, k=rng.randint(2, 8))) for _ in range(count)))
    (folder / "lang").mkdir()
    write_lang(Lexicon(lexicon), folder / "lang")
    weights, left = list(accumulate(1 / (n + 2.7) for n in range(VOCABULARY))), int(millions * 1e6)
    left += HELD_OUT * max(SENTENCE)
    with (folder / "lm.txt").open("w", encoding="utf-8") as file:
        while left > 0:
            count = min(left, rng.randint(*SENTENCE))
            file.write(" ".join(rng.choices(words, cum_weights=weights, k=count)) + "\n")
            left -= count
    return folder / "lm.txt", folder / "lang"


def measured(text: Path, lang: Path, case: tuple[int, str, float], repeat: int) -> dict:
    """A row of the table: the median of runs in processes of their own, on the first core this one may use."""
    order, style, millions = case
    options = {"text": str(text), "lang": str(lang), "order": order, "style": style, "millions": millions}
    runs = []
    for _ in range(repeat):
        found = subprocess.run(
            [sys.executable, "-m", "benchmarks.denominator", "--case", json.dumps(options)],
            stdout=subprocess.PIPE, check=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        runs.append(json.loads(found.stdout))
    middle = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
    name = f"{order}-gram {style}, {millions:g} M words"
    return {"case": name, "engine": "distill", **middle}


def run_case(options: dict) -> dict:
    """Text to denominator once; runs in a process of its own."""
    import torch

    from distill.config.graphs import Graphs
    from distill.graphs.denominator import build_denominator
    from distill.graphs.lexicon import Lang

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, worked = time.perf_counter(), time.process_time()
    lang = Lang.load(Path(options["lang"]))
    settings = Graphs(order=options["order"], style=options["style"])
    fsa, used = build_denominator(first_words(Path(options["text"]), options["millions"]), lang, settings)
    graph = lang.topology.compose(fsa)
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "memory_mb": round(memory), "sentences": used.used,
        "lm_states": fsa.num_states, "lm_arcs": fsa.num_arcs, "states": graph.num_states, "arcs": len(graph.src),
        **perplexity(fsa, lang, settings, Path(options["text"])),
    }  # fmt: skip


def perplexity(fsa: Fsa, lang: Lang, settings: Graphs, text: Path) -> dict[str, Any]:
    """Per unit, of the text's last sentences that have a path, and how many of these have none."""
    from distill.graphs.denominator import pronouncer_of
    from distill.graphs.numerator import UnitLm
    from distill.graphs.unit_ngram import unit_perplexity
    from distill.text import read_lines

    said = list(pronouncer_of(lang, settings)(deque(read_lines(text), HELD_OUT)))
    lm = UnitLm(fsa, lang.topology.num_units)
    possible = [each for each in said if math.isfinite(lm.score(each))]
    found = round(unit_perplexity(fsa, possible), 3) if possible else None
    return {"perplexity": found, "without_path": len(said) - len(possible)}


def first_words(text: Path, millions: float) -> Iterator[str]:
    """Sentences of a text until so many words are read; from its beginning again where it is too short."""
    from distill.text import read_lines

    left = int(millions * 1e6)
    while left > 0:
        for line in read_lines(text):
            yield line
            left -= len(line.split())
            if left <= 0:
                break


def grammars(text: Path, lang_dir: Path, folder: Path, millions: float) -> list[dict[str, Any]]:
    """Rows of ARPA to grammar, ours and kaldilm's, medians of three."""
    import kaldifst

    from distill.graphs.grammar_fst import grammar_fst
    from distill.graphs.lexicon import Lang
    from distill.graphs.word_ngram import train_word_ngram

    lang, arpa = Lang.load(lang_dir), folder / "words.arpa"
    train_word_ngram(first_words(text, millions), 3, lang.lexicon.words).write(arpa)
    table = str(lang_dir / "words.txt")
    rows: list[dict[str, Any]] = []

    def theirs() -> kaldifst.StdVectorFst:
        import kaldilm  # comes with the extra `dev`

        text = kaldilm.arpa2fst(input_arpa=str(arpa), output_fst="", disambig_symbol="#0", read_symbol_table=table)
        return kaldifst.compile(text, acceptor=False)

    for engine, make in (("distill", lambda: grammar_fst(arpa, lang.words)), ("kaldilm", theirs)):
        times = []
        for _ in range(3):
            started, worked = time.perf_counter(), time.process_time()
            fst = make()
            times.append((time.process_time() - worked, time.perf_counter() - started))
        arcs = sum(fst.num_arcs(state) for state in range(fst.num_states))
        cpu, seconds = (round(value, 2) for value in sorted(times)[1])
        row = {"case": f"grammar of a word 3-gram, {millions:g} M words", "engine": engine}
        ratio = round(cpu / max(0.01, rows[0]["cpu_seconds"]), 2) if rows else 1.0
        rows.append({**row, "seconds": seconds, "cpu_seconds": cpu, "ratio": ratio})
        rows[-1] |= {"states": fst.num_states, "arcs": arcs}
    return rows


if __name__ == "__main__":
    main()
