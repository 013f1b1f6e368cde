"""Stage 2: lang folder: units, words, the lexicon in units, and the topology."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distill.config.graphs import Graphs
from distill.recipe.first_weights import fine_tuned
from distill.recipe.options import Recipe, recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import Stage, run_stage

log = logging.getLogger("prepare_lang")

USED = {
    "phones": (),
    "chars": (),
    "letters": (),
    "bpe": ("seed", "bpe_pieces"),
    "biphones": (
        "seed", "silence_edge", "silence_inside", "min_biphone_count", "min_monophone_count", "independent_silence",
    ),
}  # fmt: skip


def main() -> None:
    recipe = recipe_from(recipe_parser(__doc__).parse_args())
    graphs = recipe.graph_settings()
    settings: dict[str, Any] = {"units": recipe.units, "topology": recipe.topology}
    settings |= {name: getattr(graphs, name) for name in USED[recipe.units]}
    if recipe.units == "letters":
        from distill.models.pretrained import letters_of

        settings["letters"] = letters_of(fine_tuned(recipe))
    inputs = {recipe.text / "lexicon.txt": 0}
    if recipe.units == "bpe":
        inputs[recipe.text / "lm.txt"] = 0
    if recipe.units == "biphones":
        inputs[recipe.cut_set("labelled")] = 0
    run_stage(Stage(2, recipe.lang, settings, inputs), partial(write, recipe, graphs, settings.get("letters")))


def write(recipe: Recipe, graphs: Graphs, letters: Sequence[str] | None, folder: Path) -> None:
    """tokens.txt, words.txt, lexicon.txt, topology.json (pdfs.txt, bpe.model), and L_disambig.pt as k2 reads it."""
    from distill.fsa.k2_format import save_dict, transducer_to_k2_dict
    from distill.graphs.bpe import letter_lexicon
    from distill.graphs.decoding_graph import lexicon_fst
    from distill.graphs.lexicon import Lang, Lexicon, write_lang
    from distill.graphs.topology import monophones, save_topology

    lexicon = Lexicon.read(recipe.text / "lexicon.txt")
    if letters is not None:
        write_lang(letter_lexicon(lexicon, letters), folder, letters, silence=None)
    elif recipe.units in ("chars", "bpe"):
        write_pieces(recipe, graphs, lexicon, folder)
    else:
        write_lang(lexicon, folder)
    topology = monophones(recipe.topology, len(Lang.load(folder).tokens))
    if recipe.units == "biphones":
        topology = biphones(recipe, graphs, Lang.load(folder))
    save_topology(topology, folder)
    log.info("%s, %s: %d units, %d outputs", recipe.units, recipe.topology, topology.num_units, topology.num_outputs)
    fst, _ = lexicon_fst(Lang.load(folder))
    save_dict(folder / "L_disambig.pt", transducer_to_k2_dict(fst))


def write_pieces(recipe: Recipe, graphs: Graphs, lexicon, folder: Path) -> None:
    """The lang folder of characters or BPE; only a topology without blank needs a unit for pauses."""
    from distill.graphs import bpe as pieces
    from distill.graphs.lexicon import write_lang
    from distill.text import read_lines

    if recipe.units == "bpe":
        model = pieces.train_bpe(read_lines(recipe.text / "lm.txt"), graphs.bpe_pieces, graphs.seed)
        (folder / "bpe.model").write_bytes(model)
        bpe = pieces.Bpe(model)
        written, symbols = pieces.bpe_lexicon(lexicon, bpe), bpe.pieces
    else:
        written = pieces.char_lexicon(lexicon)
        symbols = pieces.char_symbols(written)
    silence = pieces.PAUSE if recipe.topology == "two_pdf" else None
    write_lang(written, folder, [*symbols, *([silence] if silence else [])], silence)


def biphones(recipe: Recipe, graphs: Graphs, lang):
    """Left biphones tied by their counts in the labelled transcripts, as these decide what can be trained."""
    from distill.corpora.cut_sets import each_cut
    from distill.data.numerators import text_of
    from distill.graphs.biphones import count_pairs, tied_left_biphones
    from distill.graphs.denominator import pronouncer_of

    texts = (text for cut in each_cut(recipe.cuts, ["labelled"]) if (text := text_of(cut)))
    counts = count_pairs(pronouncer_of(lang, graphs)(texts), len(lang.tokens))
    independent = [lang.silence] if graphs.independent_silence else []
    return tied_left_biphones(
        recipe.topology, counts, graphs.min_biphone_count, graphs.min_monophone_count, independent
    )


if __name__ == "__main__":
    run_script(main)
