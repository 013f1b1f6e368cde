"""Stage 2: lang folder of units, words and pronunciations."""

from __future__ import annotations

from pathlib import Path

from distill.stages import Recipe, Stage, recipe_from, recipe_parser, run_script, run_stage


def main() -> None:
    recipe = recipe_from(recipe_parser(__doc__).parse_args())
    if recipe.units != "phones":
        raise ValueError(f"--units {recipe.units} is not built yet; expected phones")
    stage = Stage(2, recipe.lang, {"units": recipe.units}, {recipe.text / "lexicon.txt": 0})
    run_stage(stage, lambda folder: write(recipe, folder))


def write(recipe: Recipe, folder: Path) -> None:
    """tokens.txt, words.txt, lexicon.txt, and L_disambig.pt as k2 reads it."""
    from distill.fsa.formats import save_dict, transducer_to_k2_dict
    from distill.graphs.decoding_graph import lexicon_fst
    from distill.graphs.lexicon import Lang, Lexicon, write_lang

    write_lang(Lexicon.read(recipe.text / "lexicon.txt"), folder)
    fst, _ = lexicon_fst(Lang.load(folder))
    save_dict(folder / "L_disambig.pt", transducer_to_k2_dict(fst))


if __name__ == "__main__":
    run_script(main)
