"""Stage 4: the denominator, and the decoding graph HLG with the word 3-gram."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

from distill.files import replacing
from distill.recipe.options import Recipe, recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import Stage, run_stage

log = logging.getLogger("compile_graphs")
ARPA = "words.3gram.arpa"


def main() -> None:
    recipe = recipe_from(recipe_parser(__doc__).parse_args())
    stage = Stage(4, recipe.graphs, {"arpa": ARPA}, {recipe.lang: 2, recipe.lm: 3})
    run_stage(stage, lambda folder: write(recipe, folder))


def write(recipe: Recipe, folder: Path) -> None:
    """denominator.pt, HLG.fst (OpenFst), HLG.pt (k2), summary.json."""
    from distill.fsa.formats import load_fsa, save_fst
    from distill.graphs.decoding_graph import build_hlg, size
    from distill.graphs.lexicon import Lang

    lang = Lang.load(recipe.lang)
    shutil.copy(recipe.lm / "units.pt", folder / "denominator.pt")
    lm = load_fsa(folder / "denominator.pt")
    lm.validate(lang.topology.num_units)
    denominator = lang.topology.compose(lm)
    hlg = build_hlg(lang, recipe.lm / ARPA)
    save_fst(folder / "HLG.fst", hlg)
    write_for_k2(folder, lang)
    states, arcs = size(hlg)
    perplexity = json.loads((recipe.lm / "summary.json").read_text(encoding="utf-8"))
    summary = {
        "topology": {
            "kind": lang.topology.kind,
            "units": lang.topology.num_units,
            "outputs": lang.topology.num_outputs,
        },
        "unit_lm": {"states": lm.num_states, "arcs": lm.num_arcs, "perplexity": perplexity["units"]["perplexity"]},
        "denominator": {"states": denominator.num_states, "arcs": len(denominator.src)},
        "hlg": {"states": states, "arcs": arcs, "perplexity": perplexity[ARPA.removesuffix(".arpa")]["perplexity"]},
    }
    for name, facts in summary.items():
        log.info("%s: %s", name, ", ".join(f"{key} {value}" for key, value in facts.items()))
    with replacing(folder / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def write_for_k2(folder: Path, lang) -> None:
    """HLG.pt, which k2 and icefall decode with: labels are the model's outputs, and every arc takes a frame."""
    from distill.fsa.epsilons import decoding_graph_to_k2_dict
    from distill.fsa.formats import save_dict
    from distill.fsa.lattice import DecodingGraph

    try:
        content = decoding_graph_to_k2_dict(DecodingGraph.read(folder / "HLG.fst"), lang.topology.output_columns)
    except ValueError as error:  # nothing else here needs it
        log.warning("HLG.pt is not written: %s", error)
    else:
        save_dict(folder / "HLG.pt", content)


if __name__ == "__main__":
    run_script(main)
