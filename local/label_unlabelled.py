"""Stage 7: the teacher's lattices over HLG on the unlabelled cuts, from which students make their numerators."""

from __future__ import annotations

from functools import partial

from distill.config.experiment import TEACHERS
from distill.config.names import names_of
from distill.recipe import parallel
from distill.recipe.labelling import label, labelling_stage
from distill.recipe.options import recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import relaunched, run_stage


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--parts", default="unlabelled", help="cut sets, comma-separated")
    args = parser.parse_args()
    recipe, parts = recipe_from(args), names_of("--parts", args.parts)
    teachers = {
        name: each for name in recipe.names if (each := recipe.experiment(name)).stage in TEACHERS and each.recognises
    }
    stages = {name: labelling_stage(recipe, teacher, parts) for name, teacher in teachers.items()}
    if recipe.launcher and relaunched(recipe, list(stages.values())):
        return
    ranks, recipe = parallel.join(recipe)
    for name, stage in stages.items():
        run_stage(stage, partial(label, recipe, ranks, name, parts), ranks, recipe.job)


if __name__ == "__main__":
    run_script(main)
