"""Stage 1: stored Fbank features of the cut sets, for experiments that read them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from distill.config.names import names_of
from distill.recipe.options import Recipe, recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import Stage, run_stage

log = logging.getLogger(__name__)


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument(
        "--parts", default="", help="cut sets to compute, comma-separated; empty: those that experiments read"
    )
    parser.add_argument("--force", action="store_true", help="compute every cut set")
    args = parser.parse_args()
    recipe = recipe_from(args)
    parts = chosen_parts(recipe, list(names_of("--parts", args.parts)), args.force)
    if not parts:
        log.info("stage 1: no experiment reads stored features, nothing to compute")
        return
    stage = Stage(1, recipe.fbank, {"parts": parts}, {recipe.cuts: 0}, resumable=True)
    run_stage(stage, lambda folder: compute(recipe, parts, folder))


def chosen_parts(recipe: Recipe, names: list[str], force: bool) -> list[str]:
    """The cut sets of these names, or all; ValueError for a name that is not there."""
    known = sorted(path.name.removesuffix(".jsonl.gz") for path in recipe.cuts.glob("*.jsonl.gz"))
    missing = sorted(set(names) - set(known))
    if missing:
        raise ValueError(f"no cut set {', '.join(missing)} in {recipe.cuts}; there are: {', '.join(known)}")
    return known if force else names


def compute(recipe: Recipe, parts: list[str], folder: Path) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # lhotse's bars would mix with the log
    from distill.corpora.stored_fbank import compute_fbank

    for part in parts:
        count = compute_fbank(recipe.cuts / f"{part}.jsonl.gz", folder, recipe.nj)
        log.info("%s: features of %d utterances", part, count)


if __name__ == "__main__":
    run_script(main)
