"""Stage 1: stored Fbank features of cut sets that are named, for use elsewhere: trainings compute theirs from audio."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

from distill.config.job import takes
from distill.config.names import names_of
from distill.recipe import parallel
from distill.recipe.options import Recipe, recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import Alone, Stage, run_stage

log = logging.getLogger(__name__)


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--parts", default="", help="cut sets to compute, comma-separated; empty: none")
    parser.add_argument("--force", action="store_true", help="compute every cut set")
    args = parser.parse_args()
    recipe = recipe_from(args)
    parts = chosen_parts(recipe, list(names_of("--parts", args.parts)), args.force)
    if not parts:
        log.info(
            "stage 1: nothing to store, as trainings compute features from audio; --parts and --force name cut sets"
        )
        return
    stage = Stage(1, recipe.fbank, {"parts": parts}, recipe.cut_sets(parts), resumable=True)
    run_stage(stage, lambda folder: compute(recipe, parts, folder), job=recipe.job)


def chosen_parts(recipe: Recipe, names: list[str], force: bool) -> list[str]:
    """The cut sets of these names, or all; ValueError for a name that is not there."""
    known = sorted(path.name.removesuffix(".jsonl.gz") for path in recipe.cuts.glob("*.jsonl.gz"))
    missing = sorted(set(names) - set(known))
    if missing:
        raise ValueError(f"no cut set {', '.join(missing)} in {recipe.cuts}; there are: {', '.join(known)}")
    return known if force else names


def compute(recipe: Recipe, parts: list[str], folder: Path) -> None:
    from distill.corpora.stored_fbank import finish, missing

    chunks = [(part, number) for part in parts for number in missing(recipe.cuts, part, folder)]
    chunks = [chunk for chunk in chunks if takes(recipe.job, chunk[1])]
    parallel.each(replace(recipe, device="cpu"), Alone(), (partial(compute_chunk, folder=folder), chunks))
    for part in parts if recipe.job is None else ():
        log.info("%s: features of %d utterances", part, finish(recipe.cuts, part, folder))


def compute_chunk(recipe: Recipe, chunk: tuple[str, int], folder: Path) -> None:
    """The features of a chunk, (part, number)."""
    from distill.corpora import stored_fbank

    part, number = chunk
    stored_fbank.compute_chunk(recipe.cuts, part, folder, number)


if __name__ == "__main__":
    run_script(main)
