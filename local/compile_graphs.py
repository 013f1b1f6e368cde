"""Stage 4: the denominator, and the decoding graph HLG with the word 3-gram; beside it the graph of --hlg."""

from __future__ import annotations

import json
import logging
import shutil
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


if __name__ == "__main__":
    run_script(main)
