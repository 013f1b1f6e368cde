"""Stage 3: n-grams from the text corpus: over units for the denominator, over words for decoding.

Word n-grams that are published with the corpus (stage 0 finds them) are used as they are.
"""

from __future__ import annotations

import gzip
import logging
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from distill.config.graphs import Graphs
from distill.files import link, write_json
from distill.recipe.options import Recipe, recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import Stage, run_stage

log = logging.getLogger("train_ngrams")
WORD_ORDERS = (3, 4)
SCORED = 2000  # sentences of the text that perplexities are measured on


def main() -> None:
    recipe = recipe_from(recipe_parser(__doc__).parse_args())
    graphs = recipe.graph_settings()
    settings = {"units": graphs.of_units, "word_orders": WORD_ORDERS}
    inputs = {recipe.lang: 2, recipe.text / "lm.txt": 0}
    inputs |= {path: 0 for order in WORD_ORDERS if (path := published(recipe, order))}
    stage = Stage(3, recipe.lm, settings, inputs)
    run_stage(stage, lambda folder: write(recipe, graphs, folder))


def write(recipe: Recipe, graphs: Graphs, folder: Path) -> None:
    """units.pt, words.3gram.arpa, words.4gram.arpa, unknown_words.txt, summary.json."""
    from distill.files import write_lines
    from distill.fsa.k2_format import save_fsa
    from distill.graphs.denominator import build_denominator, unit_lm_figures
    from distill.graphs.lexicon import Lang
    from distill.graphs.word_ngram import train_word_ngram
    from distill.text import read_lines

    lang, text = Lang.load(recipe.lang), recipe.text / "lm.txt"
    fsa, used = build_denominator(read_lines(text), lang, graphs)
    save_fsa(folder / "units.pt", fsa)
    write_lines(folder / "unknown_words.txt", [f"{word} {n}" for word, n in sorted(used.unknown.items())])
    units = unit_lm_figures(fsa, islice(read_lines(text), SCORED), lang, graphs)
    summary: dict = {"sentences": used.used, "left_out": used.left_out, "units": units}
    log.info("unit %d-gram, %s: %s", graphs.order, graphs.style, units)
    for order in WORD_ORDERS:
        path, target = published(recipe, order), folder / f"words.{order}gram.arpa"
        if path:
            install(path, target)
        else:
            train_word_ngram(known(text, lang), order, lang.lexicon.words).write(target)
        result = measured(target, list(islice(known(text, lang), SCORED))) | ({"published": True} if path else {})
        summary[f"words.{order}gram"] = result
        log.info("word %d-gram: %s", order, result)
    write_json(folder / "summary.json", summary)


def published(recipe: Recipe, order: int) -> Path | None:
    """A published word n-gram, from stage 0."""
    name = f"words.{order}gram.arpa"
    return next((path for path in (recipe.text / name, recipe.text / f"{name}.gz") if path.is_file()), None)


def install(path: Path, target: Path) -> None:
    """A published n-gram, unpacked and with its words normalised as text is."""
    from distill.graphs.arpa import normalise_arpa

    if normalise_arpa(path, target):
        return
    if path.suffix == ".gz":
        with gzip.open(path, "rb") as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    else:
        link(path, target)


def measured(arpa: Path, sentences: list[str]) -> dict:
    """Size, and perplexity on the sentences whose words it has."""
    from distill.graphs.arpa import read_arpa

    lm = read_arpa(arpa, sentences)
    scored = [line for line in sentences if all((word,) in lm.probability for word in line.split())]
    if len(scored) < len(sentences):
        log.warning("%s lacks words of %d of %d sentences", arpa, len(sentences) - len(scored), len(sentences))
    return {"entries": lm.size, "perplexity": round(lm.perplexity(scored), 3)}


def known(text: Path, lang) -> Iterator[str]:
    """The sentences whose words are all in the lexicon, read line by line."""
    from distill.text import read_lines

    pronounced = lang.lexicon.pronunciations
    return (line for line in read_lines(text) if all(word in pronounced for word in line.split()))


if __name__ == "__main__":
    run_script(main)
