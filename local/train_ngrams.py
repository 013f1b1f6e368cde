"""Stage 3: n-grams from the text corpus: over units for the denominator, over words for decoding.

Word n-grams that are published with the corpus (stage 0 finds them) are taken as they are.
"""

from __future__ import annotations

import gzip
import json
import logging
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from distill.config.graphs import Graphs
from distill.files import link, replacing
from distill.recipe.options import Recipe, recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import Stage, run_stage

log = logging.getLogger("train_ngrams")
WORD_ORDERS = (3, 4)
SCORED = 2000  # sentences of the text that perplexities are measured on
USED = {"seed", "order", "style", "silence_edge", "silence_inside"}
USED_BY_CHAIN = {"no_prune_order", "num_extra_states"}


def main() -> None:
    recipe = recipe_from(recipe_parser(__doc__).parse_args())
    graphs = Graphs.load(recipe.graphs_yaml, recipe.graph_overrides)
    used = USED | USED_BY_CHAIN if graphs.style == "chain" else USED
    settings = {"units": graphs.model_dump(include=used), "word_orders": WORD_ORDERS}
    inputs = {recipe.lang: 2, recipe.text / "lm.txt": 0}
    inputs |= {path: 0 for order in WORD_ORDERS if (path := published(recipe, order))}
    stage = Stage(3, recipe.lm, settings, inputs)
    run_stage(stage, lambda folder: write(recipe, graphs, folder))


def write(recipe: Recipe, graphs: Graphs, folder: Path) -> None:
    """units.pt, words.3gram.arpa, words.4gram.arpa, unknown_words.txt, summary.json."""
    from distill.fsa.k2_format import save_fsa
    from distill.graphs.denominator import build_denominator, pronouncer_of
    from distill.graphs.lexicon import Lang, write_text
    from distill.graphs.unit_ngram import unit_perplexity
    from distill.text import read_lines

    lang, text = Lang.load(recipe.lang), recipe.text / "lm.txt"
    fsa, used = build_denominator(read_lines(text), lang, graphs)
    save_fsa(folder / "units.pt", fsa)
    write_text(folder / "unknown_words.txt", [f"{word} {n}" for word, n in sorted(used.unknown.items())])
    again = pronouncer_of(lang, graphs)(islice(read_lines(text), SCORED))  # the draws that were counted
    units = {"states": fsa.num_states, "arcs": fsa.num_arcs, "perplexity": round(unit_perplexity(fsa, again), 3)}
    summary: dict = {"sentences": used.used, "left_out": used.left_out, "units": units}
    log.info("unit %d-gram, %s: %s", graphs.order, graphs.style, units)
    for order in WORD_ORDERS:
        path, target = published(recipe, order), folder / f"words.{order}gram.arpa"
        found = taken(path, text, lang, target) if path else estimated(order, text, lang, target)
        summary[f"words.{order}gram"] = found
        log.info("word %d-gram: %s", order, found)
    with replacing(folder / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def published(recipe: Recipe, order: int) -> Path | None:
    """A word n-gram that stage 0 found beside the corpus."""
    name = f"words.{order}gram.arpa"
    return next((path for path in (recipe.text / name, recipe.text / f"{name}.gz") if path.is_file()), None)


def taken(path: Path, text: Path, lang, target: Path) -> dict:
    """A published n-gram, unpacked and spelt as text is; perplexity on the sentences whose words it has."""
    from distill.graphs.arpa import normalise_arpa, read_arpa

    respelt = normalise_arpa(path, target)
    if not respelt and path.suffix == ".gz":
        with gzip.open(path, "rb") as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    elif not respelt:
        link(path, target)
    sentences = list(islice(known(text, lang), SCORED))
    lm = read_arpa(target, sentences)
    scored = [line for line in sentences if all((word,) in lm.probability for word in line.split())]
    if len(scored) < len(sentences):
        log.warning("%s lacks words of %d of %d sentences", path, len(sentences) - len(scored), len(sentences))
    return {"entries": lm.size, "perplexity": round(lm.perplexity(scored), 3), "published": True}


def estimated(order: int, text: Path, lang, target: Path) -> dict:
    """An n-gram of the text corpus, over the words of the lexicon."""
    from distill.graphs.word_ngram import train_word_ngram

    lm = train_word_ngram(known(text, lang), order, lang.lexicon.words)
    lm.write(target)
    return {"entries": lm.size, "perplexity": round(lm.perplexity(islice(known(text, lang), SCORED)), 3)}


def known(text: Path, lang) -> Iterator[str]:
    """The sentences whose words are all in the lexicon, read line by line."""
    from distill.text import read_lines

    pronounced = lang.lexicon.pronunciations
    return (line for line in read_lines(text) if all(word in pronounced for word in line.split()))


if __name__ == "__main__":
    run_script(main)
