"""Stage 4: the denominator, and the decoding graph HLG with the word 3-gram; beside it the graph of --hlg.

Where an experiment of the call asks for it (data.denominator), also the denominator of the labelled transcripts.
"""

from __future__ import annotations

import json
import logging
import shutil
from functools import partial
from pathlib import Path

from distill.files import write_json
from distill.recipe.options import Recipe, recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import Stage, run_stage

log = logging.getLogger("compile_graphs")
ARPA = "words.3gram.arpa"


def main() -> None:
    recipe = recipe_from(recipe_parser(__doc__).parse_args())
    inputs: dict[Path, int | None] = {recipe.lang: 2, recipe.lm: 3}
    run_stage(Stage(4, recipe.graphs, {"arpa": ARPA}, inputs), lambda folder: write(recipe, None, folder))
    for folder in {recipe.training_graphs(each) for each in recipe.experiments()} - {recipe.graphs}:
        settings, sources = recipe.graph_settings().of_units, {recipe.lang: 2, recipe.cut_set("labelled"): 0}
        run_stage(Stage(4, folder, settings, sources), partial(write_denominator_of_labelled, recipe))
    if recipe.hlg:
        stage = Stage(4, recipe.decoding_graphs, {}, {**inputs, recipe.hlg: None})
        run_stage(stage, lambda folder: write(recipe, recipe.hlg, folder))


def write(recipe: Recipe, foreign: Path | None, folder: Path) -> None:
    """denominator.pt, HLG.fst (OpenFst), HLG.pt (k2: labels are outputs, every arc takes a frame), summary.json.

    foreign: a decoding graph made elsewhere, in place of that of the word 3-gram.
    """
    from distill.fsa.k2_format import decoding_graph_to_k2_dict, load_fsa, save_dict
    from distill.fsa.lattice import DecodingGraph
    from distill.fsa.openfst import save_fst
    from distill.graphs.decoding_graph import build_hlg, read_hlg
    from distill.graphs.lexicon import Lang

    lang = Lang.load(recipe.lang)
    topology = lang.topology
    shutil.copy(recipe.lm / "units.pt", folder / "denominator.pt")
    lm = load_fsa(folder / "denominator.pt")
    lm.validate(topology.num_units)
    denominator = topology.compose(lm)
    hlg = read_hlg(foreign, lang).to_openfst() if foreign else build_hlg(lang, recipe.lm / ARPA)
    save_fst(folder / "HLG.fst", hlg)
    graph = DecodingGraph.read(folder / "HLG.fst")
    try:
        save_dict(folder / "HLG.pt", decoding_graph_to_k2_dict(graph, topology.output_columns))
    except ValueError as error:  # nothing else here needs it
        log.warning("HLG.pt is not written: %s", error)
    perplexity = json.loads((recipe.lm / "summary.json").read_text(encoding="utf-8"))
    of_words = None if foreign else perplexity[ARPA.removesuffix(".arpa")]["perplexity"]
    summary = {
        "topology": {"kind": topology.kind, "units": topology.num_units, "outputs": topology.num_outputs},
        "unit_lm": {"states": lm.num_states, "arcs": lm.num_arcs, "perplexity": perplexity["units"]["perplexity"]},
        "denominator": {"states": denominator.num_states, "arcs": len(denominator.src)},
        "hlg": {"states": graph.num_states, "arcs": len(graph.label), "perplexity": of_words},
    }
    for name, sizes in summary.items():
        log.info("%s: %s", name, ", ".join(f"{key} {value}" for key, value in sizes.items()))
    write_json(folder / "summary.json", {**summary, "foreign": True} if foreign else summary)


def write_denominator_of_labelled(recipe: Recipe, folder: Path) -> None:
    """denominator.pt of the transcripts of the labelled part, and its size and perplexity on them (summary.json)."""
    from distill.corpora.cut_sets import load_cuts
    from distill.data.numerators import text_of
    from distill.fsa.k2_format import save_fsa
    from distill.graphs.denominator import build_denominator, unit_lm_figures
    from distill.graphs.lexicon import Lang

    lang, graphs = Lang.load(recipe.lang), recipe.graph_settings()
    sentences = [text_of(cut) or "" for cut in load_cuts(recipe.cuts, ["labelled"])]
    fsa, used = build_denominator(sentences, lang, graphs)
    save_fsa(folder / "denominator.pt", fsa)
    unit_lm = unit_lm_figures(fsa, sentences, lang, graphs)
    log.info("unit_lm of %d labelled transcripts, %d left out: %s", used.used, used.left_out, unit_lm)
    write_json(folder / "summary.json", {"sentences": used.used, "left_out": used.left_out, "unit_lm": unit_lm})


if __name__ == "__main__":
    run_script(main)
