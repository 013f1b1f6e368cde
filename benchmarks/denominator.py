"""Time and memory from text to denominator, by size of the text, order and style of the n-gram; one core.

The text is drawn: words by Zipf's law from a vocabulary with drawn pronunciations, a tenth of the words with
two. --text and --lang take a text and a lang folder instead. Every case runs in a process of its own; ratios are
of processor time, to the bigram of a million words. The grammar of a word 3-gram is timed beside kaldilm's.
Perplexities are per unit, on the text's last sentences, which a text that is long enough does not read before; a
chain-style n-gram has no path for some of them, which are counted.
"""

from __future__ import annotations

import math
import os
import random
import tempfile
from collections import deque
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when numpy is loaded, also by the processes that are started

from benchmarks.measure import in_process, measure
from benchmarks.table import Row, finish, parser

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
    options = parser(__doc__)
    options.add_argument("--text", type=Path, help="one sentence a line; repeated if it is too short")
    options.add_argument("--lang", type=Path, help="its lang folder")
    options.add_argument("--most", type=float, default=3.0, help="largest text, in millions of words")
    options.add_argument("--repeat", type=int, default=1, help="runs per case behind the first; the median counts")
    args = options.parse_args()
    if (args.text is None) != (args.lang is None):
        options.error("--text and --lang belong together")
    with tempfile.TemporaryDirectory() as folder:
        text, lang = (args.text, args.lang) if args.text else drawn_text(Path(folder), args.most)
        rows = [row(text, lang, case, args.repeat) for case in CASES if case[2] <= args.most]
        rows += grammars(text, lang, Path(folder), min(1.0, args.most))
    base = next((each["cpu_seconds"] for each in rows if each["case"] == "2-gram interpolated, 1 M words"), None)
    for each in rows:
        each.setdefault("ratio", each["cpu_seconds"] / base if base else None)
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


def row(text: Path, lang: Path, case: tuple[int, str, float], repeat: int) -> Row:
    """Text to denominator in a process of its own, on the first core this one may use."""
    order, style, millions = case
    name = f"{order}-gram {style}, {millions:g} M words"
    return {"case": name, "engine": "distill", **in_process(figures, text, lang, case, repeat)}


def figures(text: Path, lang_dir: Path, case: tuple[int, str, float], repeat: int) -> Row:
    import torch

    from distill.config.graphs import Graphs
    from distill.graphs.denominator import build_denominator
    from distill.graphs.lexicon import Lang

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    order, style, millions = case
    lang, settings = Lang.load(lang_dir), Graphs.model_validate({"order": order, "style": style})
    made: list[tuple] = []

    def run() -> None:
        fsa, pronouncer = build_denominator(first_words(text, millions), lang, settings)
        made[:] = [(fsa, pronouncer.used, lang.topology.compose(fsa))]

    measured = measure(run, repeat)
    ((fsa, sentences, graph),) = made
    return {
        **measured, "sentences": sentences, "lm_states": fsa.num_states, "lm_arcs": fsa.num_arcs,
        "states": graph.num_states, "arcs": len(graph.src), **perplexity(fsa, lang, settings, text),
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


def grammars(text: Path, lang_dir: Path, folder: Path, millions: float) -> list[Row]:
    """Rows of ARPA to grammar, ours and kaldilm's, medians of three."""
    import kaldifst

    from distill.graphs.grammar_fst import grammar_fst
    from distill.graphs.lexicon import Lang
    from distill.graphs.word_ngram import train_word_ngram

    lang, arpa = Lang.load(lang_dir), folder / "words.arpa"
    train_word_ngram(first_words(text, millions), 3, lang.lexicon.words).write(arpa)
    table = str(lang_dir / "words.txt")

    def theirs() -> kaldifst.StdVectorFst:
        import kaldilm  # comes with the extra `dev`

        text = kaldilm.arpa2fst(input_arpa=str(arpa), output_fst="", disambig_symbol="#0", read_symbol_table=table)
        return kaldifst.compile(text, acceptor=False)

    rows: list[Row] = []
    for engine, make in (("distill", lambda: grammar_fst(arpa, lang.words)), ("kaldilm", theirs)):
        row: Row = {"case": f"grammar of a word 3-gram, {millions:g} M words", "engine": engine, **measure(make, 3)}
        fst = make()
        arcs = sum(fst.num_arcs(state) for state in range(fst.num_states))
        ratio = row["cpu_seconds"] / (rows[0]["cpu_seconds"] if rows else row["cpu_seconds"])
        rows.append({**row, "ratio": ratio, "states": fst.num_states, "arcs": arcs})
    return rows


if __name__ == "__main__":
    main()
