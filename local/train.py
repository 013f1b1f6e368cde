"""Stages 5, 6, 8 and 9: train the experiments of that stage: pre-training, teacher, students, streaming students."""

from __future__ import annotations

import logging
from functools import partial

from distill.recipe.options import recipe_from, recipe_parser
from distill.recipe.parallel import join
from distill.recipe.script import run_script
from distill.recipe.stage import relaunched, run_stage
from distill.recipe.training import train, training_stage

log = logging.getLogger("train")


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--stage", type=int, required=True, choices=(5, 6, 8, 9))
    args = parser.parse_args()
    recipe = recipe_from(args)
    asked = recipe.experiments()
    for teacher in (each for each in asked if not each.trained and args.stage == 6):
        log.info("stage 6: %s (%s) is fine-tuned already: nothing to train", teacher.name, teacher.pretrained)
    experiments = [experiment for experiment in asked if experiment.stage == args.stage and experiment.trained]
    if relaunched(recipe, [training_stage(recipe, experiment) for experiment in experiments]):
        return
    ranks, _ = join(recipe, longest_wait=None)
    for experiment in experiments:
        run_stage(training_stage(recipe, experiment), partial(train, recipe, experiment), ranks)


if __name__ == "__main__":
    run_script(main)
