"""Stage 3: n-grams from the text corpus: over units for the denominator, over words for decoding."""

from __future__ import annotations

import json
from pathlib import Path

from distill.stages import Recipe, Stage, recipe_from, recipe_parser, run_script, run_stage

WORD_ORDERS = (3, 4)


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--unit-order", type=int, default=2, help="order of the denominator's n-gram")
    args = parser.parse_args()
    recipe = recipe_from(args)
    settings = {"unit_order": args.unit_order, "word_orders": WORD_ORDERS, "seed": 0}
    stage = Stage(3, recipe.lm, settings, {recipe.lang: 2, recipe.text / "lm.txt": 0})
    run_stage(stage, lambda folder: write(recipe, args.unit_order, folder))


def write(recipe: Recipe, unit_order: int, folder: Path) -> None:
    """units.pt, words.3gram.arpa, words.4gram.arpa, summary.json."""
    from distill.fsa.formats import save_fsa
    from distill.graphs.denominator import Pronouncer, build_denominator
    from distill.graphs.lexicon import Lang, write_text
    from distill.graphs.ngram import train_word_ngram, unit_perplexity

    lang = Lang.load(recipe.lang)
    text = recipe.text / "lm.txt"
    sentences = text.read_text(encoding="utf-8").splitlines()
    fsa, used = build_denominator(sentences, lang, unit_order)
    save_fsa(folder / "units.pt", fsa)
    known = [s for s in sentences if all(w in lang.lexicon.pronunciations for w in s.split())]
    summary = {
        "sentences": used.used,
        "left_out": used.left_out,
        "unit_states": fsa.num_states,
        "unit_arcs": fsa.num_arcs,
        "unit_perplexity_on_text": unit_perplexity(fsa, Pronouncer(lang, seed=1)(known[:2000])),
    }
    write_text(folder / "unknown_words.txt", [f"{word} {n}" for word, n in sorted(used.unknown.items())])
    for order in WORD_ORDERS:
        lm = train_word_ngram(known, order, lang.lexicon.words)
        lm.write(folder / f"words.{order}gram.arpa")
        summary[f"{order}gram_entries"] = len(lm.probability)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
